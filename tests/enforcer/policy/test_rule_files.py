"""How a path leads to a file, and whether a task could have had a hand in it. Needs no root."""

import os

import pytest

from enforcer.policy import rule_files
from enforcer.policy.rule_files import check_root_owned, fingerprint, system_files
from enforcer.policy.run_request import task_labels, task_name
from enforcer.system.errors import HostError, UsageError


@pytest.fixture
def tree(tmp_path):
    """A workspace, and rules beside it."""
    base = tmp_path.resolve()
    for name in ("desk/sub/deep", "rules/..1", "rules/..2"):
        (base / name).mkdir(parents=True)
    for name in (
        "desk/in.yaml",
        "desk/sub/in.yaml",
        "desk/sub/deep/in.yaml",
        "rules/out.yaml",
        "rules/..1/web.yaml",
        "rules/..2/web.yaml",
    ):
        (base / name).write_text(name)
    for link, to in (
        ("rules/..data", "..1"), ("rules/web.yaml", "..data/web.yaml"), ("desk/link.yaml", "../rules/out.yaml"),
        ("desk/here.yaml", "in.yaml"), ("desk/dir", "sub"), ("rules/inward.yaml", "../desk/in.yaml"), ("rules/through.yaml", "../desk/dir/in.yaml"),
        ("rules/loop.yaml", "loop.yaml"), ("rules/nowhere.yaml", "gone"),
    ):  # fmt: skip
        (base / link).symlink_to(to)
    return base


TRAILS = {
    "rules/out.yaml": ["rules", "rules/out.yaml"],
    "rules/web.yaml": ["rules", "rules/web.yaml", "rules/..data", "rules/..1", "rules/..1/web.yaml"],
    "desk/link.yaml": ["desk", "desk/link.yaml", "rules", "rules/out.yaml"],
    "desk/sub/../in.yaml": ["desk", "desk/sub", "desk/in.yaml"],
    "desk/./sub//in.yaml": ["desk", "desk/sub", "desk/sub/in.yaml"],
    "rules/nowhere.yaml": ["rules", "rules/nowhere.yaml", "rules/gone"],
    "rules/gone/more.yaml": ["rules", "rules/gone"],
}


@pytest.mark.parametrize("path", TRAILS)
def test_every_name_on_a_path_is_collected(tree, path):
    steps = rule_files.list_steps(str(tree / path) if "." not in path.partition("/")[2] else f"{tree}/{path}")
    inside = [os.path.relpath(step.path, tree) for step in steps if step.path.startswith(f"{tree}/")]
    assert inside == TRAILS[path]


def test_link_cycle_ends(tree):
    assert len(rule_files.list_steps(f"{tree}/rules/loop.yaml")) < 100


EXPOSED = {
    "rules/out.yaml": "", "rules/web.yaml": "", "desk/in.yaml": "", "desk/sub/deep/in.yaml": "", "rules/inward.yaml": "",
    "desk/link.yaml": "symbolic link", "desk/here.yaml": "symbolic link", "desk/dir/in.yaml": "symbolic link", "rules/through.yaml": "symbolic link",
    "desk/sub/../in.yaml": "spell it without `..`", "rules/../desk/sub/../in.yaml": "spell it without `..`",
    "desk/later.yaml": "could make it", "desk/sub/gone/x.yaml": "could make it", "rules/later.yaml": "",
}  # fmt: skip


@pytest.mark.parametrize("path", EXPOSED)
def test_path_that_a_task_could_redirect_is_found(tree, path):
    problems = rule_files.find_exposed([f"{tree}/{path}"], [f"{tree}/desk"])
    assert [EXPOSED[path] in problem for problem in problems] == [True] * bool(EXPOSED[path])


def test_task_that_could_replace_the_service_socket_is_refused(tree):
    for path in ("desk/control", "desk/sub/none/control", "rules/inward.yaml", "desk/sub/../../rules/control"):
        with pytest.raises(UsageError, match=r"could listen there itself; name another place with EXEAT_CONTROL"):
            rule_files.refuse_service(f"{tree}/{path}", [f"{tree}/desk"])
    for path in (f"{tree}/rules/control", f"{tree}/desks/control", ""):
        rule_files.refuse_service(path, [f"{tree}/desk"])


def _write(tree):
    (tree / "desk/sub/deep/in.yaml").write_text("more")


def _rename_over(tree):
    (tree / "desk/new").write_text("new")
    (tree / "desk/new").rename(tree / "desk/sub/deep/in.yaml")


def _rename_over_often(tree):
    """A file system gives the number of an inode that is gone to the next one: it must not be gone."""
    for _ in range(50):
        _rename_over(tree)


def _directory(tree):
    (tree / "desk/sub").rename(tree / "desk/old")
    (tree / "desk/sub/deep").mkdir(parents=True)
    (tree / "desk/sub/deep/in.yaml").write_text("new")


def _back_again(tree):
    (tree / "desk/sub").rename(tree / "desk/old")
    (tree / "desk/old").rename(tree / "desk/sub")


CHANGES = {
    _write: [],  # the cover lies on the file, whatever is in it
    _rename_over: ["desk/sub/deep/in.yaml"],
    _rename_over_often: ["desk/sub/deep/in.yaml"],
    _directory: ["desk/sub", "desk/sub/deep", "desk/sub/deep/in.yaml"],
    _back_again: [],
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_lost_cover_is_found(tree, change):
    path, desk = f"{tree}/desk/sub/deep/in.yaml", f"{tree}/desk"
    covers = rule_files.hold_masked([path], [desk])
    assert rule_files.find_unmasked([path], [desk], covers) == ()
    change(tree)
    assert [os.path.relpath(lost, tree) for lost in rule_files.find_unmasked([path], [desk], covers)] == CHANGES[change]
    never = [f"{tree}/desk/in.yaml"]
    assert rule_files.find_unmasked(never, [desk], covers) == tuple(never)


@pytest.mark.parametrize(
    "change", ["write", "same size", "replace", "swap", "remove", "nothing", "beside", "root's"]
)  # fmt: skip
def test_fingerprint_changes_with_the_files(tree, change):
    paths = (f"{tree}/rules/web.yaml", f"{tree}/rules/later.yaml")
    before = fingerprint(paths, tree / "etc")
    file = tree / "rules/..1/web.yaml"
    status = file.stat()
    if change == "write":
        file.write_text("longer than it was")
    elif change == "same size":  # and its time of change put back: the kernel's own is not to be had
        file.write_text("x" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "replace":
        (tree / "new").write_text(file.read_text())
        (tree / "new").rename(file)
    elif change == "swap":
        (tree / "rules/tmp").symlink_to("..2")
        (tree / "rules/tmp").rename(tree / "rules/..data")
    elif change == "remove":
        file.unlink()
    elif change == "beside":
        (tree / "rules/other.yaml").write_text("other")
    elif change == "root's":
        (tree / "etc/rules.d").mkdir(parents=True)
    assert (fingerprint(paths, tree / "etc") == before) is (change in {"nothing", "beside"})


@pytest.mark.parametrize(
    ("given", "command", "name"),
    [(None, "make", "make"), (None, "/usr/bin/My Tool", "my-tool"), (None, "./x/", "task"), ("migrate-7", "make", "migrate-7")],
)  # fmt: skip
def test_task_names_are_parsed(given, command, name):
    assert task_name(given, command) == name


@pytest.mark.parametrize("word", ["", "x", "=x", "Team=a", "team=", "team=a b", "team=ä", "team=a\n", "te am=x"])
def test_malformed_labels_are_refused(word):
    with pytest.raises(UsageError, match="--label"):
        task_labels([word])


def test_labels_are_parsed_and_deduplicated():
    assert task_labels(["team=data", "env=v1.2_3-x", "team=data"]) == {"team": "data", "env": "v1.2_3-x"}


def test_missing_system_directory_has_no_rules(tmp_path):
    assert system_files(tmp_path / "nowhere") == []


def test_system_rules_of_another_owner_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    if os.geteuid() == 0:
        os.chown(file, 12345, 0)
    with pytest.raises(HostError, match="and not to root"):
        check_root_owned(file)
    with pytest.raises(HostError, match="cannot be read"):
        check_root_owned(tmp_path / "gone")
