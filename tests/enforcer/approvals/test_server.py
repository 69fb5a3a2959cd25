"""The registry as a process, with this process as the runner of a task, as its worker, and as whoever answers."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from enforcer.approvals import client
from enforcer.approvals.registration import _asked
from enforcer.cli import main
from enforcer.system import linux
from enforcer.system.errors import ExeatError
from proxy.approvals import protocol
from proxy.approvals.people import hash_token
from tests.enforcer.approvals.registry_process import WorkerEnd, ask, events, kill, pid, question
from tests.support import harness
from tests.support.waiting import PATIENCE, wait_until


def test_request_is_listed_approved_and_journaled(worker_end, state_home):
    named = worker_end.ask()
    ((waiting,),) = (said["approvals"] for said in ask(what="list"))
    assert (waiting["id"], waiting["line"], waiting["votes"]) == (named, "POST api.example:443/x", "0 of 1")
    (shown,) = ask(what="show", id=named[:5])
    assert shown["approval"]["id"] == named
    (said,) = ask(what="answer", id=named[:5], vote="approve", why="looked at it")
    assert said["final"]
    answer = worker_end.receive()
    assert (answer.result, answer.why, len(answer.grants)) == (protocol.Result.GRANTED, "", 1)
    kinds = [event["kind"] for event in events(state_home / "journal", "approval.")]
    assert kinds == ["approval.asked", "approval.seen", "approval.answered", "approval.used"]
    assert {event["task"]["name"] for event in events(state_home / "journal", "approval.")} == {"make"}


def test_replacement_registry_knows_pending_requests_and_grants(worker_end, state_home):
    first = worker_end.ask(1, lasts=None)
    ask(what="answer", id=first, vote="approve", **{"for": ["uses 2"]})
    assert worker_end.receive().result is protocol.Result.GRANTED
    waits = worker_end.ask(2, path="/other")
    old = pid()
    kill()
    assert worker_end.end.recv(1) == b""  # its worker denies from here on
    wait_until(
        lambda: worker_end.registration.hear() or worker_end.registration.wait() == 0
    )  # who looks after the task notices, too
    told = []

    class Worker:
        def send(self, what, descriptors):
            told.append(what)
            worker_end.take(os.dup(descriptors[0]))

    wait_until(lambda: worker_end.registration.turn(Worker()) or told, "another registry")
    assert told == [{"approvals": True}]
    assert pid() != old
    ((one,),) = (said["approvals"] for said in ask(what="list"))
    assert one["id"] == waits
    worker_end.send(protocol.Submit(7, question()))
    assert worker_end.receive().result is protocol.Result.GRANTED  # the second use
    worker_end.send(protocol.Submit(8, question()))
    assert isinstance(worker_end.receive(), protocol.Pending)
    ask(what="answer", id=waits, vote="approve")
    worker_end.send(protocol.Submit(9, question("/other")))
    assert worker_end.receive().result is protocol.Result.GRANTED


def test_simultaneous_starts_leave_one_registry(state_home):
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                (said,) = client.ask({"what": "status"})
                (state_home / f"pid-{os.getpid()}").write_text(str(said["pid"]))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert {file.read_text() for file in state_home.glob("pid-*")} == {str(pid())}
    assert len(list(state_home.glob("pid-*"))) == 8


def leads(process):
    """Where its descriptors lead; None where one is gone again, for it goes on working."""
    with contextlib.suppress(FileNotFoundError):
        return {number: os.readlink(f"/proc/{process}/fd/{number}") for number in os.listdir(f"/proc/{process}/fd")}


def test_registry_inherits_only_its_lock_and_listener(state_home, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hush")
    held = os.open(state_home, os.O_RDONLY)
    os.set_inheritable(held, True)
    client.connected().close()
    there = wait_until(pid)
    os.close(held)
    led = wait_until(lambda: leads(there))
    assert str(state_home) not in led.values()
    assert led["0"] == led["1"] == "/dev/null"
    assert b"hush" not in Path(f"/proc/{there}/environ").read_bytes()
    assert os.getsid(there) != os.getsid(0)
    assert b"-B" in Path(f"/proc/{there}/cmdline").read_bytes().split(b"\0")  # bytecode of its umask nobody could read
    status = dict(line.split(":\t") for line in Path(f"/proc/{there}/status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) & ~(1 << 19) == 0  # CAP_SYS_PTRACE: to see who is in which namespace


def test_registry_exits_when_its_directory_is_removed(state_home):
    ask(what="status")
    there = pid()
    for path in (client.approvals_directory() / client.LOCK_FILE, client.approvals_directory() / client.SOCKET):
        path.unlink()
    wait_until(lambda: not os.path.exists(f"/proc/{there}/cmdline") or not Path(f"/proc/{there}/cmdline").read_bytes())


def test_malformed_message_disconnects_the_worker_and_ends_its_grants(worker_end, state_home):
    named = worker_end.ask()
    ask(what="answer", id=named, vote="approve", **{"for": ["task"]})
    assert worker_end.receive().result is protocol.Result.GRANTED
    with contextlib.closing(WorkerEnd("t2", state_home / "journal")) as other:
        assert other.ask() != named
        other.end.send(b'{"ask": 2, "question": "please", "answer": "granted"}')
        assert other.end.recv(1) == b""
    worker_end.send(protocol.Submit(2, question()))
    assert worker_end.receive().result is protocol.Result.GRANTED


def test_long_requests_do_not_hide_others(worker_end, state_home):
    # How long one is is up to a task, and a packet holds 200 KB: what asks has to be seen whole, so it comes in pieces.
    paths = [f"/{number}/" + '"\\' * 10_000 for number in range(12)]
    long = [worker_end.ask(number, path=path) for number, path in enumerate(paths)]
    with contextlib.closing(WorkerEnd("t2", state_home / "journal")) as other:
        named = other.ask()
        for post in (worker_end.registration, other.registration):
            post._connection.settimeout(PATIENCE)
        told = [
            worker_end.registration._connection.recv(1 << 16) for _ in paths
        ]  # at a run's terminal: its beginning, in any order
        assert max(map(len, told)) < 4096
        for path in paths:
            assert [f"POST api.example:443{path[:3]}" in _asked(data) for data in told].count(True) == 1
        assert other.registration._connection.recv(1 << 16)  # or whoever watches hears of one twice
        listed = [each for part in ask(what="list") for each in part["approvals"]]
        assert [each["id"] for each in listed] == [*long, named]
        assert [each["line"] for each in listed] == [f"POST api.example:443{path}" for path in [*paths, "/x"]]
        (shown,) = ask(what="show", id=long[0])
        assert paths[0] in shown["text"]
        watching = client.follow({"what": "watch"})
        assert [next(watching)["approval"]["id"] for _ in range(13)] == [*long, named]
        watching.close()
        ask(what="answer", id=named, vote="approve")
        assert other.receive().result is protocol.Result.GRANTED


def test_forged_tokens_are_recorded_and_then_rate_limited(worker_end, state_home):
    token, other = "t" * 40, "u" * 40
    write_approvers(state_home, ada=token)
    named = worker_end.ask(by="dba")
    for _ in range(5):
        with pytest.raises(ExeatError, match="this token is nobody's"):
            ask(what="answer", id=named, vote="approve", token=other)
    with pytest.raises(ExeatError, match="none is looked at for 60 seconds"):
        ask(what="answer", id=named, vote="approve", token=token)
    with pytest.raises(ExeatError, match="wants dba"):
        ask(what="answer", id=named, vote="approve")
    refused = events(state_home / "exeat/journal", "approval.refused")
    assert len([event for event in refused if "a token that is nobody's" in event.get("detail", "")]) == 5


def write_approvers(state_home, text="", **known):
    """People by their tokens, or by their uids; all of them are of the group `dba`."""
    said = {
        name: f"uid: {by}" if isinstance(by, int) else f'tokens: ["{hash_token(by)}"]'
        for name, by in {"owner": os.geteuid(), **known}.items()
    }
    people = "".join(f"  - {{name: {name}, {by}}}\n" for name, by in said.items())
    groups = f"groups: {{dba: [{', '.join(known)}]}}\n" if known else ""
    file = state_home / "exeat/approvers.yaml"
    file.write_text(f"version: 1\npeople:\n{people}{groups}{text}")
    wait_until(
        lambda: not pid() or (said := ask(what="status"))[0]["file"] == str(file) or said[0]["told"], "the new file"
    )
    return file


def test_notifier_gets_the_card_and_a_reviewer_votes(state_home, tmp_path):
    told, script = tmp_path / "told.json", tmp_path / "review"
    script.write_text(f'#!/bin/sh\ncat > {tmp_path}/asked.json\necho \'{{"answer": "approve", "why": "small"}}\'\n')
    script.chmod(0o755)
    (state_home / "exeat").mkdir(mode=0o700)
    write_approvers(
        state_home,
        f"notify:\n  - {{command: [/bin/sh, -c, 'cat > {told}.new && mv {told}.new {told}']}}\n"
        f"reviewers:\n  - {{name: linter, command: [{script}], rules: ['web:*']}}\n",
    )
    with contextlib.closing(WorkerEnd("t1", state_home / "journal")) as worker_end:
        named = worker_end.ask()
        answer = worker_end.receive()
        assert (answer.result, answer.by) == (protocol.Result.GRANTED, ("reviewer linter",))
        assert json.loads(wait_until(lambda: told.exists() and told.read_text()))["type"] == "approval.asked"
        assert json.loads((tmp_path / "asked.json").read_text())["type"] == "approval.review"
        last = [
            event for event in events(state_home / "journal", "approval.answered") if event["approval"]["id"] == named
        ]
        assert last[-1]["approval"]["by"] == ["reviewer linter"]


def test_other_users_vote_at_roots_registry_as_permitted(state_home, monkeypatch):
    harness.needs_root()
    with tempfile.TemporaryDirectory(prefix="exeat-test-") as open_to_all:
        os.chmod(open_to_all, 0o755)
        monkeypatch.setenv(client.VARIABLE, f"{open_to_all}/host/socket")
        with contextlib.closing(WorkerEnd("t1", state_home / "journal")) as worker_end:
            named = worker_end.ask(by="dba")
            write_approvers(state_home, ada=harness.UID)
            wait_until(lambda: os.path.exists(f"{open_to_all}/host/socket"), "the host's socket")
            pushed = {"what": "introduce", "who": worker_end.introduction.packed(), "journal": "/tmp/x"}
            assert "may not approve: `" in other_user(harness.UID + 1, {"what": "list"})
            assert "introduced by whoever made it" in other_user(harness.UID, pushed)
            assert other_user(harness.UID, {"what": "list"})[0]["approvals"][0]["id"] == named
            assert other_user(harness.UID, {"what": "answer", "id": named, "vote": "approve"})[0]["by"] == "ada"
            assert worker_end.receive().by == ("ada",)


def other_user(uid, what):
    """What another user of this host is answered."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(uid, uid, uid)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)  # as every program that is executed then may be
            try:
                said = client.ask_host(what)
            except ExeatError as error:
                said = str(error)
            os.write(write, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        said = json.loads(file.read())
    os.waitpid(child, 0)
    return said


def test_run_without_ask_rules_imports_no_registry():
    code = "import sys, enforcer.run.task, enforcer.run.sandbox_spec, enforcer.run.supervise, enforcer.service.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=harness.PROJECT, check=True)
    assert [name for name in done.stdout.split() if "approvals" in name] == []


def test_broken_approvers_file_blocks_approval_until_fixed(worker_end, state_home, capsys, monkeypatch):
    monkeypatch.setenv("EXEAT_CONTROL", str(state_home / "no service"))
    named = worker_end.ask()
    file = state_home / "exeat/approvers.yaml"
    file.write_text("version: 1\npoeple: []\n")
    wait_until(lambda: ask(what="status")[0]["told"])
    why = "nobody can approve anything: .*approvers.yaml:2:1: `poeple`"
    with pytest.raises(ExeatError, match=f"may not approve: `.*approvers.yaml` lists nobody; {why}"):
        ask(what="answer", id=named, vote="approve")
    (said,) = ask(what="status")
    assert said["told"] == [said["broken"]]
    for words in (["status"], ["approvals"]):
        assert main(words) == (125 if words == ["status"] else 0)
        assert re.search(why, capsys.readouterr().err)
    file.unlink()
    wait_until(lambda: ask(what="status")[0]["file"] == "")
    (said,) = ask(what="status")
    assert (said["broken"], said["told"]) == ("", [])
    ask(what="answer", id=named, vote="approve")
    assert worker_end.receive().result is protocol.Result.GRANTED
