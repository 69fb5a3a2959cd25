"""Where a group can be made in version 2, on trees of plain files: slices, scopes, services and containers."""

import os

import pytest

from enforcer.limits.cgroup_tree import CONTROLLERS, Hierarchy, ParentLimits, choose_locations
from tests.support import harness

ALL = "cpu io memory pids"


@pytest.fixture
def tree(tmp_path):
    """Make groups of plain files. A group without `cgroup.procs` is one that we may not write to."""

    def make(groups, needed=CONTROLLERS):
        for path, (controllers, given, processes, *limits) in groups.items():
            folder = tmp_path / path
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cgroup.controllers").write_text(controllers)
            (folder / "cgroup.subtree_control").write_text(given)
            if processes is not None:
                (folder / "cgroup.procs").write_text(processes)
            if path:
                (folder / "cgroup.type").write_text("domain")
            for name, value in limits:
                (folder / name).write_text(value)
        own = str(tmp_path / max(groups, key=len)).rstrip("/")
        found = choose_locations([Hierarchy(2, frozenset(ALL.split()), str(tmp_path), own)], needed)
        return [(os.path.relpath(each.path, tmp_path), set(each.controllers), each) for each in found]

    return make


def test_shared_scope_leads_to_its_slice(tree):
    groups = {
        "": (ALL, ALL, None),
        "user.slice/user@1.service": (ALL, "memory pids", None),
        "user.slice/user@1.service/app.slice": ("memory pids", "memory pids", ""),
        "user.slice/user@1.service/app.slice/term.scope": ("memory pids", "", "1\n2\n"),
    }
    [(path, controllers, place)] = tree(groups)
    assert path == "user.slice/user@1.service/app.slice"
    assert controllers == {"memory", "pids"}
    assert not place.must_empty


def test_parent_group_without_more_controllers_is_not_used(tree):
    limits = [("memory.max", "1048576\n"), ("pids.max", "77\n"), ("cpu.max", "50000 100000\n")]
    groups = {
        "a": (ALL, ALL, ""),
        "a/b": (ALL, "", "1\n", ("pids.max", "99\n")),
        "a/b/c": ("", "", "1\n", *limits),
    }
    [(path, _, place)] = tree(groups)
    assert path == "a"
    assert place.ceiling == ParentLimits(memory=1048576, processes=77, cpu=0.5)


def test_own_group_is_kept_by_moving_to_a_subgroup(tree):
    groups = {"a": (ALL, ALL, ""), "a/ours.service": (ALL, "", f"{os.getpid()}\n")}
    [(path, controllers, place)] = tree(groups)
    assert path == "a/ours.service"
    assert controllers == {"cpu", "memory", "pids"}
    assert place.must_empty
    assert place.ceiling == ParentLimits()


def test_processes_in_a_delegated_group_are_moved(tree, tmp_path):
    (tmp_path / "a/exeat.service").mkdir(parents=True)
    try:
        os.setxattr(tmp_path / "a/exeat.service", "user.delegate", b"1")
    except OSError:
        harness.missing("a file system with attributes of users' own")
    groups = {"a": (ALL, ALL, None), "a/exeat.service": (ALL, "", "1\n7\n")}
    [(path, controllers, place)] = tree(groups)
    assert (path, controllers) == ("a/exeat.service", {"cpu", "memory", "pids"})
    assert place.must_empty


def test_root_group_can_have_processes_and_controllers(tree):
    [(path, controllers, place)] = tree({"": (ALL, "", f"1\n{os.getpid()}\n")})
    assert (path, controllers, place.must_empty) == (".", {"cpu", "memory", "pids"}, False)


def test_shared_container_has_no_controllers(tree):
    [(_, controllers, _)] = tree({"": ("", "", None), "c": (ALL, "", "1\n7\n")})
    assert controllers == set()


def test_unwritable_group_is_not_used(tree):
    groups = {"a": (ALL, ALL, ""), "a/b": (ALL, ALL, None), "a/b/c": (ALL, "", "1\n7\n")}
    assert [(path, controllers) for path, controllers, _ in tree(groups)] == [("a/b/c", set())]
    groups = {"x": (ALL, ALL, ""), "x/session-3.scope": (ALL, "", None)}
    assert tree(groups) == []


def test_group_with_more_controllers_is_preferred(tree):
    groups = {
        "a": (ALL, ALL, ""),
        "a/b": (ALL, "pids", ""),
        "a/b/c": ("pids", "pids", ""),
        "a/b/c/d": ("pids", "", "1\n"),
    }
    [(path, controllers, _)] = tree(groups)
    assert (path, controllers) == ("a/b", {"cpu", "memory", "pids"})


def test_unneeded_controller_does_not_matter(tree):
    groups = {
        "a": (ALL, ALL, ""),
        "a/b": (ALL, "memory pids", ""),
        "a/b/c": ("memory pids", "", "1\n"),
    }
    [(path, controllers, _)] = tree(groups, CONTROLLERS - {"cpu"})
    assert (path, controllers) == ("a/b", {"memory", "pids"})
