"""`exeat up`, and `exeat run` under it, as root and as an ordinary user: each scenario has a service of its own."""

import json
import os
import sys
from collections import Counter

import pytest

from tests.enforcer.escapes import table
from tests.support import confined, harness

USERS = "\t".join([str(harness.UID)] * 4)
UNKNOWN = "exeat: this task runs without the service, so `exeat ps`, `exeat stop` and the service's metrics omit it\n"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def seen(someone):
    def scenario(name):
        done = someone.run(
            [sys.executable, "-m", "tests.enforcer.service.scenarios", name], cwd=someone.work, text=True, timeout=150
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return scenario


@pytest.mark.first_run
def test_run_is_the_same_with_and_without_the_service(seen, someone):
    found = seen("alike")
    assert [name for name, run in found["without"].items() if not run["err"].startswith(UNKNOWN)] == ["words"]
    for run in found["without"].values():
        run["err"] = run["err"].removeprefix(UNKNOWN)
    assert found["with"] == found["without"]
    assert found["started_by"] == [harness.UID if someone.user else 4242]
    assert found["with"]["status"]["status"] == 3
    assert found["with"]["signal"]["status"] == -9
    assert found["with"]["blocked"]["out"] == "403\n403\n"
    assert found["with"]["here"]["out"].split()[1:] == [
        "0027",
        *found["with"]["here"]["out"].split()[2:4],
        "yes",
        "C.UTF-8",
        "typed",
    ]
    assert found["up"].startswith("exeat: serving with 2 workers on ")
    assert str(found["pid"]) in found["second"]
    assert len(found["workers"]) == 2
    assert len(found["scraped"]) == 1
    if someone.user:  # it is in no namespace where it may drop that (capabilities(7)), and executes nothing
        found["keyholder"]["CapBnd"] = found["workers"][0]["CapBnd"]
    apart = [*found["workers"], found["keyholder"], *found["scraped"]]
    for process in apart:
        assert process == confined.wanted(int(process["Uid"][0].split()[0]))
        assert (process["Uid"] == [USERS]) == someone.user
    assert len({process["Uid"][0] for process in apart}) == (1 if someone.user else 4)
    assert (found["mode"], found["ended"], found["left"], found["alone"]) == ("0o600", 0, False, 0)


def test_signals_stops_lost_callers_and_reloads(seen, someone):
    found = seen("ends")
    assert found["signal"] == ["caught\n", 7]
    assert found["ps"][0][0] == "named"
    assert found["stopped"] == [0, 7]
    assert found["nobody"] == 2
    assert (found["killed"], found["told"]) == ([-9, True], [["passed", {"signal": 9}]])
    assert found["unread"] == ["", 141]
    assert someone.user or found["full"] == ["exeat: cannot write the output: No space left on device\n", 2]
    # ^C is the task's to catch; hanging up is a signal like any; keys reach a task whose standard input is a pipe
    assert found["terminal"] == [7, -1, 0]
    assert found["reviewed"] == {"status": 0, "out": "", "err": ""}
    assert found["beyond"]["status"] == 124
    assert "exeat: the task reached a limit: disk: its changes take " in found["beyond"]["err"]
    assert "exeat: its changes are kept (1 added): " in found["beyond"]["err"]
    assert found["broken"]["status"] == 2
    assert "rules.yaml" in found["broken"]["err"]
    assert found["ended"] == 0
    assert "NOT intact" not in found["verified"]  # nobody but the service signed here
    assert "; signed up to " in found["verified"]


def test_replacement_worker_takes_over_the_sandboxes(seen):
    found = seen("crash")
    assert found["apart"]
    cut, others = (Counter(answers) for answers in found["answers"])
    assert cut in ({"403": 30}, {"403": 29, "ConnectionResetError": 1})  # the one that was open
    assert others == {"403": 30}
    assert found["replaced"] == [found["victim"]]
    assert found["signed"]["pages"] == ["403", "403"]
    assert found["signed"]["next"] not in (0, found["signed"]["first"])
    assert found["ended"] == 0


def test_pending_work_of_a_dead_worker_is_answered(seen):
    found = seen("backlog")
    assert found["before"] == 0
    assert found["answers"] == ["403"] * 8
    assert (found["restarts"], found["ended"]) == (1, 0)


@harness.as_a_user
def test_blamed_sandbox_gets_a_worker_of_its_own(seen):
    """However often it has one die: the neighbour lost the first one, and no other."""
    found = seen("blamed")
    assert found["answers"] == ["403"] * 3
    assert found["same"]
    apart = {
        "where": "worker",
        "detail": "a worker died while it served this sandbox, which has a worker of its own now",
    }
    assert apart in found["faults"]
    assert found["ended"] == 0


@harness.as_a_user
def test_flood_of_one_sandbox_spares_its_neighbour(seen):
    found = seen("neighbours")
    assert (found["answers"], found["count"], found["restarts"]) == (["403"], 10, 0)
    assert found["near"] == ["refused"] * 4  # whatever the hog's names stand for, they stand for nothing here
    assert [80, "no_rule"] in found["told"]["mine"]
    assert {port for port, _ in found["told"]["mine"]} == {80}
    assert {reason for port, reason in found["told"]["near"] if port == 443} == {"unresolved"}
    assert 80 not in {port for port, _ in found["told"]["hog"]}
    assert found["ended"] == 0


@harness.as_a_user
def test_run_with_an_unreadable_policy_is_declined_alone(seen):
    found = seen("unreadable")
    remedy = "; this is a bug of Exeat: run `exeat doctor`, and report its output with this message\n"
    for kind in ("strange", "half"):
        for (status, said), where in zip(found[kind], ("the service", "its worker"), strict=True):
            assert status == 125, said
            assert f"{where} can't read the compiled rules (" in said
            assert said.endswith(remedy)
            assert said.count("\n") == 1
    assert "`__init__` of a Policy is no part of a policy" in found["strange"][0][1]
    assert [found[name] for name in ("again", "good", "changed", "right")] == [125, 0, 125, 0]
    assert (found["before"], found["still"]) == ("403\n", ["403\n"] * 3)
    assert "the service can't read the compiled rules" in str(found["rejected"])
    assert (found["workers"], found["ended"]) == (0, 0)


def test_killed_service_leaves_nothing_and_restarts_clean(seen):
    found = seen("killed")
    assert found["had"] >= 5
    assert found["status"] == 125
    assert found["there"] == [["control", "control.lock"], True]  # besides the groups, which the next one takes away
    assert found["made"] == [False, [1]]
    assert (found["again"], found["ended"]) == (0, 0)


def test_attached_namespace_reaches_only_the_gate(seen):
    found = seen("foreign")
    assert (found["attached"], found["in"], found["still"], found["crash"]) == (0, "403", "403", "403")
    assert (found["before"], found["out"]) == ("OSError", "ConnectionRefusedError")
    assert found["asked"] == ["3 0"] * 3  # over UDP and TCP, and of the next worker
    assert found["twice"][0] == 125
    assert "as by a gate" in found["twice"][1]
    assert (found["listed"], found["stopped"]) == ([["box", True]], [2, True])
    assert found["by_path"] == [0, "403", True, 0, "ConnectionRefusedError"]
    assert found["no_path"][0] == 2
    assert "rules.yaml` is not a network namespace" in found["no_path"][1]
    assert (found["detached"], found["again"], found["in_again"]) == (0, 0, "403")
    assert found["other"][0] == 125
    assert "other devices than `lo`: veth0, x0" in found["other"][1]
    assert found["own"][0] == 125
    assert "the network namespace of the host" in found["own"][1]
    assert (found["last"], found["ended"]) == (0, 0)
    # By `detach`, at the end of its process, of the service, and where it couldn't be attached: each has one end.
    causes = [ended["cause"] for ended in found["task.ended"]]
    assert sorted(causes) == sorted(started["id"] for started in found["task.started"])
    ends = Counter(ended["outcome"] for ended in found["task.ended"])
    assert ends == {"passed": 4, "failed": 3}
    assert all(ended["duration"] > 0 for ended in found["task.ended"] if ended["outcome"] == "passed")


def test_run_with_its_own_worker_is_listed_counted_and_stopped(seen, someone):
    found = seen("alone")
    assert found["listed"] == [["rotated", None, True], ["secret", None, True]]
    why = {"secret": "its rules have `secrets`", "rotated": "the CA was replaced after the service had started"}
    assert found["status"] == why
    for name, reason in why.items():
        assert f"has a gate of its own: {reason}" in found["words"], name
    assert found["knocked"] == [["403", "403"], 0]
    assert found["own"]["status"] == 125
    assert "is in use: name another port with `--metrics HOST:PORT`, or leave `--metrics` out" in found["own"]["err"]
    assert (found["stopped"], found["ends"]) == ([0, 0], [3, -9])
    assert found["told"] == [["passed", {"signal": 9}]]
    assert found["without"] == [UNKNOWN, ""]
    assert [said.count(UNKNOWN) for said in found["others"]] == ([1] if someone.user else [1, 1]), found["others"]
    assert found["nobody"] == ""
    for name, said in zip(("secret", "rotated"), found["errors"], strict=True):
        assert f"exeat: {why[name]}, so this task has a gate of its own" in said
    assert (found["left"], found["next"], found["ended"]) == ([], 0, 0)


def test_failed_attach_leaves_nothing_open(seen):
    found = seen("handed")
    assert found["said"] == ["process PID has ended; name a running one"]
    assert max(found["more"], default=0) <= 2, found  # in each of which it was tried eight times
    assert found["same"]
    assert found["ended"] == 0


def test_killed_process_of_any_kind_leaves_nothing(someone):
    """`make soak` is the long form; `EXEAT_SEED` has the same processes killed again."""
    argv = [sys.executable, "-m", "tests.enforcer.service.scenarios", "faults"]
    argv = harness.as_user(argv, someone.home) if someone.user else argv
    watched = [sys.executable, "-m", "tests.soak.origin", someone.home.parent / "reached", *argv]
    done = harness.run(watched, home=someone.home, cwd=someone.work, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == [], found
    assert (found["ends"], found["killed"] >= 1, found["merged"] >= 1) == (9, True, True), found
    assert {"200", "403", "wrote"} <= set(found["answers"]), found


def test_warm_sandbox_is_like_any_other(seen, someone):
    found = seen("ahead")
    files = "388" if someone.user else "777"  # some are left to the others of a user, and 777 is few
    assert found["alike"][0] == found["alike"][1] == found["alike"][2]
    assert found["alike"][0][:4] == ["0027", files, str(os.nice(0) + 3), "t"]
    assert "left" not in found["alike"][0]
    assert len(set(found["apart"])) == len(found["apart"]) == 15
    assert (found["ends"], found["ended"]) == ([0, 0, 0], 0)


def test_service_works_under_socket_activation(seen):
    found = seen("systemd")
    assert found["said"] == ["READY=1", "WATCHDOG=1", "STOPPING=1"]
    assert (found["status"], found["ended"], found["leaked"], found["left"]) == (5, 0, [], True)


def test_other_users_and_malformed_requests_are_refused(seen, someone):
    table.put(someone)
    found = seen("strangers")
    assert table.astray(found["escapes"]) == {}
    assert len(found["escapes"]) > 150
    assert found["apart"].count("refused") == 2
    assert "refused" in found["uid"]
    assert ("serves only that user" in found["uid"]) == (not someone.user)
    assert set(found["said"]) == {"declined"}
    assert (found["done"], found["ended"]) == (0, 0)


@harness.as_a_user
def test_further_worker_serves_beyond_the_descriptor_limit(seen):
    """As a user: root raises the limit again."""
    found = seen("full")
    assert found["began"] == [0, 0]
    assert (found["named"], found["served"]) == ([True] * 3, [1, 1, 1])
    assert (found["statuses"], found["ended"]) == ([0] * 3, 0)
