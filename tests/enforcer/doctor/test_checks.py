"""`exeat doctor`: ready exactly where `exeat run` starts, else why not in the same words, and nothing left behind."""

import fcntl
import json
import os
import sys
from pathlib import Path

import pytest

from enforcer.doctor import checks, self_test
from enforcer.sandbox import landlock
from enforcer.sandbox.mount_steps import Bind
from enforcer.worker import confinement
from tests.support import harness

RULES = "version: 1\nname: nothing\nrules: []\n"
EXEAT = Path(sys.executable).with_name("exeat")
NO_MORE = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
# Where it is run, and what of it doesn't work there for root and for an ordinary user; `run` says the first.
PLACES = {
    "here": ((), [], []),
    "as root of a user namespace": (("unshare", "-r"), ["ids"], []),
    "under an id that is not mapped": (("unshare", "-U"), ["ids", "namespaces"], ["ids", "namespaces"]),
    "where there are no user namespaces": (
        ("unshare", "--map-current-user", "--keep-caps", "sh", "-c", NO_MORE, "-"),
        ["ids", "namespaces"],
        ["namespaces"],
    ),
}


@pytest.mark.first_run
@pytest.mark.parametrize("place", PLACES)
def test_doctor_is_ready_exactly_where_a_run_starts(someone, place):
    words, for_root, for_user = PLACES[place]
    broken = for_user if someone.user else for_root
    rules = someone.write(someone.home / "rules.yaml", RULES)
    exeat = [*words, EXEAT]
    examined = someone.run([*exeat, "doctor", "--format", "json"])
    left = sorted(path.name for path in (someone.home / ".local/state/exeat").rglob("*"))
    ran = someone.run([*exeat, "run", "--quiet", "--rules", rules, "--", "true"])
    assert left == ["cache", "journal"]
    said = json.loads(examined.stdout)
    failed = {finding["name"]: finding for finding in said["findings"] if _is_lacking(finding)}
    assert list(failed) == broken
    assert (ran.returncode, examined.returncode, said["ready"]) == ((125, 1, False) if broken else (0, 0, True))
    if broken:
        first = failed[broken[0]]
        assert f"{first['seen']}; {first['remedy']}\n" in ran.stderr.decode()


def test_directory_of_a_killed_doctor_is_removed(tmp_path):
    """A killed doctor can't remove its directory. One that is in use stays."""
    abandoned, used = tmp_path / "self-test-a", tmp_path / "self-test-b"
    for path in (abandoned, used):
        (path / "work").mkdir(parents=True)
    descriptor = os.open(used, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with self_test._temporary_state(tmp_path) as place:
            assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["self-test-b", os.path.basename(place)])
            with self_test._temporary_state(tmp_path) as other:
                assert os.path.isdir(place), "another doctor at the same time removes nothing that is in use"
                assert other != place
        assert [path.name for path in tmp_path.iterdir()] == ["self-test-b"]
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def examinations():
    """What the doctor says to root and to a user, who are asked once: it is the same for all of their homes."""
    return {}


@pytest.fixture
def finding(someone, examinations):
    if someone.user not in examinations:
        examinations[someone.user] = json.loads(someone.run([EXEAT, "doctor", "--format", "json"]).stdout)["findings"]
    return {finding["name"]: finding for finding in examinations[someone.user]}


def test_landlock_is_reported_where_the_kernel_has_it(finding):
    wall = finding["landlock"]
    assert wall["works"] == (landlock.version() >= landlock.MIN_VERSION), wall["seen"]


# Of each limit how it is said, and where the kernel shows it (proc_pid_limits(5)) if it is kept as an rlimit.
LIMITS = {
    "memory": ("1GiB", "Max data size", str(1 << 30)),
    "processes": ("40", "Max processes", "40"),
    "cpu": ("0.5", "", ""),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_report_says_how_limits_are_enforced(someone, finding, kind):
    much, name, value = LIMITS[kind]
    found = finding[f"limit of {kind}"]
    rules = someone.write(someone.home / "rules.yaml", f"{RULES}sandbox: {{limits: {{{kind}: {much}}}}}\n")
    ran = someone.exeat("run", "--quiet", "--rules", rules, "--", "cat", "/proc/self/limits")
    if found["seen"].startswith("not at all"):
        assert (ran.returncode, found["works"]) == (125, False)
        assert f"`{kind}` cannot be limited on this machine" in ran.stderr.decode()
        return
    assert ran.returncode == 0, ran.stderr.decode()
    [started] = [event for event in someone.events() if event["kind"] == "task.started"]
    [means] = [part.rpartition(" by ")[2] for part in started["detail"].split(", ") if part.startswith(f"{kind} ")]
    assert found["seen"].partition(",")[0] == f"by {means}"
    held = {line[:26].strip(): line[26:].split()[0] for line in ran.stdout.decode().splitlines()}
    assert (held.get(name) == value) == (means == "rlimit")
    assert found["works"] == (means != "rlimit" or "in the task's own user namespace" in found["seen"])


def _is_lacking(finding):
    return finding["needed"] and finding["tried"] and not finding["works"]


def test_dependent_checks_are_skipped_without_namespaces(someone):
    words, for_root, for_user = PLACES["where there are no user namespaces"]
    lines = someone.run([*words, EXEAT, "doctor"]).stdout.decode().splitlines()
    untried = [line.split("not tried: needs ")[1] for line in lines if line.startswith("untried")]
    lacking = ", ".join(for_user if someone.user else for_root)
    assert sorted(untried) == sorted([*["namespaces"] * 4, lacking])
    remedies = [line.split("to do: ")[1] for line in lines if "to do: " in line]
    assert remedies[0 if someone.user else 1] == (
        "run `sysctl -w user.max_user_namespaces=15000` as root, or in a container allow user namespaces"
    )
    assert len(set(remedies)) == len(remedies)


def tried(name, system):
    [trial] = [trial for trial in checks._checks(system) if trial.name == name]
    return checks._run_check(trial)


@pytest.fixture
def state(tmp_path, monkeypatch):
    harness.needs_root()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "exeat"


def test_self_test_starts_a_real_sandbox(state, tmp_path, monkeypatch):
    assert tried("a whole sandbox", tmp_path / "none").works
    monkeypatch.setattr(confinement, "steps", lambda: (Bind("/no/such/place", "/no/such/place"),))
    found = tried("a whole sandbox", tmp_path / "none")
    assert not found.works
    assert found.seen.startswith("the gate could not be started: could not ")
    assert "/no/such/place" in found.seen
    assert list(state.iterdir()) == []


ROOTS = {
    "none": ({}, True, "none in "),
    "rules": ({"rules.d/a.yaml": RULES}, True, "1 rule file in "),
    "both": ({"rules.d/a.yaml": RULES, "rules.d/b.yaml": RULES.replace("nothing", "more"), "identities.yaml": "version: 1\nidentities: []\n"}, True, "2 rule files in "),
    "broken": ({"rules.d/a.yaml": "version: 1\nrulez: []\n"}, False, "`rulez`"),
    "who may claim what is broken": ({"identities.yaml": "- x\n"}, False, "nothing runs while "),
}  # fmt: skip


@pytest.mark.parametrize("case", ROOTS)
def test_roots_rules_are_read_as_in_a_run(state, tmp_path, case):
    files, works, says = ROOTS[case]
    for name, text in files.items():
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = tried("root's rules", tmp_path / "etc")
    assert found.works is works, found
    assert says in found.seen
    assert "\n" not in found.seen


def test_rule_file_of_another_owner_is_reported_with_a_remedy(state, tmp_path):
    path = tmp_path / "etc" / "rules.d" / "a.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(RULES)
    os.chown(path, harness.UID, harness.UID)
    found = tried("root's rules", tmp_path / "etc")
    assert found.seen == f"`{path}` belongs to uid {harness.UID} and not to root"
    assert found.remedy == f"run `chown root {path}`"


@pytest.mark.parametrize("name", ["", "journal", "cache"])
def test_state_directories_are_checked_as_in_a_run(state, name):
    (state / name).mkdir(parents=True)
    (state / name).chmod(0o777)
    found = tried("state directory", state)
    assert not found.works
    assert found.remedy == f"run `chmod go-w {state / name}`".replace("/`", "`")


def test_crashed_check_is_a_failure(state):
    died = checks._run_check(checks._Check("x", lambda: os._exit(0), "mend it"))
    assert (died.works, died.seen, died.remedy) == (False, "the check ended unexpectedly", "mend it")
