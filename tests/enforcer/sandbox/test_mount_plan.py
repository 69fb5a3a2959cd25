"""The plan of a view: what is shown, what is covered, and what is refused before anything is mounted."""

import os

import pytest

from enforcer.sandbox import mount_plan, system_paths
from enforcer.sandbox.identity import Identity, IdMap
from enforcer.sandbox.mount_steps import Bind, Directory, HideNames, Mask, MaskSockets, Pin, ReadOnly, Tmpfs
from enforcer.sandbox.overlays import Show
from enforcer.sandbox.system_paths import refuse_workspace
from enforcer.system.errors import HostError, UsageError

ONE = IdMap(((0, 4242, 1),))
INNER = IdMap(((4242, 0, 1),))


def _identity(home="/home/someone"):
    return Identity(
        privileged=False,
        outer_uids=ONE,
        outer_gids=ONE,
        inner_uids=INNER,
        inner_gids=INNER,
        user="someone",
        uid=4242,
        gid=4242,
        home=home,
        kernel_uid=4242,
        kernel_gid=4242,
        worker_uid=4242,
        signer_uid=4241,
    )


def _plan(workspace, **more):
    return mount_plan.plan(mount_plan.MountRequest(identity=_identity(), workspace=str(workspace), etc={}, **more))


def test_only_the_workspace_is_writable(tmp_path):
    writable = [step for step in _plan(tmp_path) if isinstance(step, Bind) and step.writable and not step.devices]
    assert [step.target for step in writable] == [str(tmp_path)]


def test_root_becomes_read_only_last(tmp_path):
    steps = _plan(tmp_path)
    assert steps[-1] == ReadOnly("/")
    assert steps[-2] == MaskSockets(str(tmp_path))


@pytest.mark.parametrize(
    "workspace", ["/", "/usr", "/etc", "/home", "/home/someone", "/proc", "/root", "/run", "/tmp", "/var"]
)
def test_workspace_that_contains_system_or_home_is_refused(workspace):
    with pytest.raises(UsageError, match=f"a task cannot write to `{workspace}`"):
        _plan(workspace)


def test_refused_workspace_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for workspace, why in (
        (tmp_path, "it is your home directory, with your keys and configuration"),
        ("/tmp", "all programs of this machine keep files there"),
        ("/var/tmp", "all programs of this machine keep files there"),
        ("/dev/shm", "all programs of this machine keep files there"),
        ("/", "it is or contains `/usr`"),
    ):
        with pytest.raises(UsageError) as error:
            refuse_workspace(str(workspace), str(tmp_path))
        assert str(error.value) == (
            f"a task cannot write to `{workspace}`: {why}; "
            "run from a project's own directory, or name one with --workspace"
        )


def test_rule_files_in_the_workspace_are_covered_and_pinned(tmp_path):
    rules = tmp_path / "conf" / "net" / "web.yaml"
    rules.parent.mkdir(parents=True)
    rules.touch()
    steps = _plan(tmp_path, protect=(str(rules),))
    assert Mask(str(rules)) in steps
    pins = [step.target for step in steps if isinstance(step, Pin)]
    assert pins == [str(tmp_path / "conf"), str(tmp_path / "conf" / "net")]
    assert steps.index(Pin(pins[-1])) < steps.index(Mask(str(rules)))


def test_state_in_the_workspace_is_hidden(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    assert Mask(str(state), hide=True) in _plan(tmp_path, secret=(str(state),))


def test_state_in_another_shown_path_is_hidden(tmp_path):
    shown, work = tmp_path / "shown", tmp_path / "work"
    for path in (shown / "state", work):
        path.mkdir(parents=True)
    steps = _plan(work, read=(str(shown),), secret=(str(shown / "state"),))
    assert steps.index(Show(str(shown), guarded=True)) < steps.index(Mask(str(shown / "state"), hide=True))


@pytest.mark.parametrize("inside", [".", "sub"])
def test_no_path_in_the_state_can_be_shown(tmp_path, inside):
    work = tmp_path / "state" / inside
    work.mkdir(parents=True, exist_ok=True)
    with pytest.raises(UsageError, match="which stays hidden"):
        _plan(os.path.realpath(work), secret=(str(tmp_path / "state"),))


@pytest.mark.parametrize("where", ["same", "inside"])
def test_workspace_at_exeats_code_is_refused(tmp_path, where):
    code = tmp_path if where == "same" else tmp_path / "lib"
    work = tmp_path if where == "same" else tmp_path / "lib" / "pkg"
    work.mkdir(parents=True, exist_ok=True)
    with pytest.raises(UsageError, match="exeat's own code"):
        _plan(work, sealed=(str(code),))


def test_module_search_path_cannot_be_the_workspace(tmp_path):
    with pytest.raises(UsageError, match="exeat's own code"):
        _plan(tmp_path, protect=(str(tmp_path),))


def test_credentials_in_a_workspace_are_hidden(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shown = tmp_path / "home" / ".config"
    (shown / "gcloud").mkdir(parents=True)
    (tmp_path / "home" / ".ssh").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    covered = [step.target for step in _plan(work, read=(str(shown),)) if isinstance(step, Mask) and step.hide]
    assert f"{shown}/gcloud" in covered
    with pytest.raises(UsageError, match="which stays hidden"):
        _plan(work, read=(str(tmp_path / "home" / ".ssh"),))


def test_every_step_describes_itself(tmp_path):
    said = [step.describe() for step in _plan(tmp_path)]
    assert all(line and "\n" not in line for line in said)
    assert len(set(said)) == len(said)


def test_hard_linked_rule_file_is_refused(tmp_path):
    work, rules = tmp_path / "work", tmp_path / "rules.yaml"
    work.mkdir()
    rules.touch()
    os.link(rules, work / "also")
    with pytest.raises(UsageError, match="1 more hard links"):
        _plan(work, protect=(str(rules),))


@pytest.mark.parametrize("path", ["/", "/etc", "/etc/ssl", "/dev", "/proc/self", "/run/user", "/sys", "/var", "/tmp"])
def test_own_paths_of_a_sandbox_cannot_be_shown_from_the_host(tmp_path, path):
    with pytest.raises(UsageError, match="cannot be shown as it is on the host"):
        _plan(tmp_path, read=(path,))


def test_path_shown_already_is_not_mounted_twice(tmp_path):
    shown = [step.source for step in _plan(tmp_path, read=("/usr", "/usr/share")) if isinstance(step, Show)]
    assert shown.count("/usr") == 1
    assert "/usr/share" not in shown


def test_path_shown_inside_the_workspace_is_read_only(tmp_path):
    (tmp_path / "lib").mkdir()
    steps = _plan(tmp_path, read=(str(tmp_path / "lib"),))
    bound = next(number for number, step in enumerate(steps) if isinstance(step, Bind) and step.target == str(tmp_path))
    assert steps.index(Show(str(tmp_path / "lib"), guarded=True)) > bound


def test_home_is_resolved_before_checks(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    with pytest.raises(UsageError, match="a task cannot write to"):
        _plan(tmp_path / "real")
    shown = tmp_path / "real" / ".config"
    (shown / "gcloud").mkdir(parents=True)
    hidden = [
        step.target for step in _plan(_other(tmp_path), read=(str(shown),)) if isinstance(step, Mask) and step.hide
    ]
    assert f"{shown}/gcloud" in hidden


def _other(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_linked_credentials_are_hidden_at_their_target(tmp_path, monkeypatch):
    """People keep what is in their home elsewhere, in a repository that a task then works in."""
    home, work = tmp_path / "home", tmp_path / "dotfiles"
    for path in (home, work / "keys", work / "cfg" / "gcloud"):
        path.mkdir(parents=True)
    (home / ".ssh").symlink_to("../dotfiles/keys")
    (home / ".config").symlink_to(work / "cfg")
    monkeypatch.setenv("HOME", str(home))
    hidden = {step.target for step in _plan(work) if isinstance(step, Mask) and step.hide}
    assert {str(work / "keys"), str(work / "cfg" / "gcloud")} <= hidden


def test_documented_credentials_are_hidden():
    for name in (".ssh", ".aws", ".gnupg", ".config/gcloud", ".kube", ".docker", ".mozilla", ".config/google-chrome", ".bash_history", ".local/share/keyrings"):  # fmt: skip
        assert name in system_paths.HOME_CREDENTIALS
    assert len(set(system_paths.HOME_CREDENTIALS)) == len(system_paths.HOME_CREDENTIALS)
    assert all(name == os.path.normpath(name) and not os.path.isabs(name) for name in system_paths.HOME_CREDENTIALS)


def test_hidden_link_and_its_target_are_masked(tmp_path):
    work, kept = tmp_path / "work", tmp_path / "work" / "sub" / "kept"
    kept.mkdir(parents=True)
    (work / "link").symlink_to("sub/kept")
    steps = _plan(work, hide=(str(work / "link"), str(kept)), names=((".env",),))
    hidden = [step.target for step in steps if isinstance(step, Mask) and step.hide]
    assert [path for path in hidden if path.startswith(str(tmp_path))] == [str(kept)]
    assert Pin(str(work / "sub")) in steps
    assert HideNames(str(work), ((".env",),)) in steps
    with pytest.raises(UsageError, match="which stays hidden"):
        _plan(work, hide=(str(tmp_path),))


def test_extra_writable_path_is_guarded_as_the_workspace(tmp_path):
    work, more, rules = tmp_path / "work", tmp_path / "more", tmp_path / "more" / "conf" / "web.yaml"
    rules.parent.mkdir(parents=True)
    work.mkdir()
    rules.touch()
    single = tmp_path / "single"
    single.touch()
    steps = _plan(work, write=(str(more), str(single)), protect=(str(rules),))
    for path in (work, more, single):
        assert Bind(str(path), str(path), writable=True) in steps
    assert all(step in steps for step in (Pin(str(rules.parent)), Mask(str(rules)), MaskSockets(str(more))))
    with pytest.raises(UsageError, match="exeat's own code or rules"):
        _plan(work, write=(str(rules),), protect=(str(rules),))


@pytest.mark.parametrize("path", ["/etc/hosts", "/usr/local/bin", "/boot/x", "/", "/home", "/run/x", "/proc/1"])
def test_system_directory_cannot_be_writable(tmp_path, path):
    with pytest.raises(UsageError, match=r"a task cannot write to|other programs of this host trust"):
        _plan(tmp_path, write=(path,))


def test_mounts_come_before_mounts_inside_them(tmp_path):
    for name in ("a/b/c/d", "work"):
        (tmp_path / name).mkdir(parents=True)
    a, b, c, d = (str(tmp_path / name) for name in ("a", "a/b", "a/b/c", "a/b/c/d"))
    steps = _plan(tmp_path / "work", read=(a, c), write=(b, d))
    shown = [step for step in steps if isinstance(step, Show | Bind) and step.source in {a, b, c, d}]
    assert [step.source for step in shown] == [a, b, c, d]
    assert [type(step) for step in shown] == [Show, Bind, Show, Bind]


def test_cache_lies_only_in_the_sandboxs_own_paths(tmp_path):
    home = "/home/someone"
    kept = (mount_plan.CacheMount("/state/pip", f"{home}/.cache/deep/pip"), mount_plan.CacheMount("", "/var/cache/apt"))
    steps = _plan(tmp_path, caches=kept)
    made = [step.target for step in steps if isinstance(step, Directory) and step.target.startswith(home)]
    assert made == [f"{home}/.cache", f"{home}/.cache/deep"]
    assert Bind("/state/pip", f"{home}/.cache/deep/pip", writable=True) in steps
    assert Tmpfs("/var/cache/apt", 0o700, owner=(0, 0)) in steps
    for target in (str(tmp_path), str(tmp_path / "x"), str(tmp_path.parent)):
        with pytest.raises(UsageError, match="overlaps"):
            _plan(tmp_path, caches=(mount_plan.CacheMount("/state/pip", target),))


def test_files_of_proc_are_listed_completely():
    assert mount_plan._kernel_proc_names() == sorted(name for name in os.listdir("/proc") if not name.isdigit())


def test_proc_with_only_processes_needs_no_mask(tmp_path, monkeypatch):
    """A sandbox's own /proc would have all the names that can't be listed then, and none would be hidden."""
    monkeypatch.setattr(mount_plan, "_kernel_proc_names", lambda: ["self", "thread-self"])  # subset=pid, proc(5)
    with pytest.raises(HostError, match="ProcSubset=all"):
        _plan(tmp_path)
