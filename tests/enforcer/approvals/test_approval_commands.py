"""What the commands say: of what waits, of what is no question, and of what `flag` let go."""

import argparse
import json
import os
import re
import subprocess
from types import SimpleNamespace

import pytest

from enforcer.approvals import client
from enforcer.approvals.registration import _asked, rule_files
from enforcer.cli import approval_requests, approvals, flagged, main
from enforcer.cli.output import table
from enforcer.cli.parsing import Parser
from enforcer.service import control_client
from enforcer.system.errors import ExeatError, HostError
from proxy.approvals.people import hash_token
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind
from rules.verdicts import Outcome, Verdict
from tests.enforcer.approvals.approvals_lab import as_root, as_user
from tests.support.telemetry_lab import full_event

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def called(monkeypatch, capsys):
    """`exeat approvals` in this process, with a registry that says what it is told to."""

    def call(*words, answers=(), fails=""):
        asked = []

        def ask(arguments, what):
            asked.append({**what, **approval_requests.read_token(arguments)})
            if fails:
                raise approval_requests.UsageError(fails)
            return list(answers)

        monkeypatch.setattr(approval_requests, "send_request", ask)
        monkeypatch.setattr(approval_requests, "send_to_all", ask)
        parser = Parser.of("approvals", approvals.ARGUMENTS)
        status = approvals.run(parser.read(words))
        out, err = capsys.readouterr()
        return status, out, err, asked

    return call


def test_invalid_arguments_are_refused_with_a_suggestion(called):
    assert called("lsit")[:3] == (
        2, "", "exeat: invalid value `lsit` for `exeat approvals`; did you mean `list`?\n"
    )  # fmt: skip
    assert "write `exeat approvals show ID`" in called("show")[2]
    assert "takes no arguments" in called("list", "x")[2]
    assert "needs --token-file" in called("answer", "abcd", "approve")[2]
    assert "answer ID approve" in called("answer", "abcd", "maybe")[2]
    status, _, err, asked = called("reject", "abcd", "--for", "1h")
    assert (status, asked, "a rejection has no `--for`" in err) == (2, [], True)


def test_options_unknown_to_the_short_commands_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(approval_requests, "send_request", None)  # nobody is asked
    with pytest.raises(SystemExit, match="2"):
        main(["reject", "abcd", "--for", "1h"])
    assert "`--for` is not an option of `exeat reject`: a rejection has no terms" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["approve", "abcd", "efgh"])
    assert "takes no more words, and `efgh` is left over" in capsys.readouterr().err


def test_vote_is_sent_as_given_and_its_token_read_from_a_private_file(called, tmp_path):
    file = tmp_path / "token"
    file.write_text("hush\n")
    file.chmod(0o600)
    said = {"id": "abcd2345", "final": True, "text": "abcd2345: approved: once \x1b[2J"}
    status, out, _, asked = called(
        *("approve", "abcd", "--for", "1h", "--for", "uses 3", "--scope", "attempt", "--why", "fine"),
        *("--token-file", str(file)),
        answers=[said],
    )
    assert (status, out) == (0, "abcd2345: approved: once \\x1b[2J\n")
    assert asked == [
        {"what": "answer", "id": "abcd", "vote": "approve", "for": ["1h", "uses 3"], "covers": "attempt", "why": "fine",
         "token": "hush"}
    ]  # fmt: skip
    file.chmod(0o644)
    status, _, err, asked = called("reject", "abcd", "--token-file", str(file))
    assert (status, asked) == (2, [])
    assert "is open to others" in err


def test_list_shows_pending_requests_without_control_characters(called):
    one = {
        "id": "abcd2345", "task": "t1", "name": "make", "line": "POST api.example:443/\x1b[31mx", "rules": ["web:write"],
        "votes": "1 of 2", "asked": 0, "wish": "", "stale": True,
    }  # fmt: skip
    status, out, _, _ = called(answers=[{"approvals": [one]}, {"approvals": []}])
    assert status == 0
    head, line, foot = out.splitlines()
    assert head.split() == ["ID", "TASK", "RULE", "APPROVED", "WAITS", "WHAT"]
    assert line.startswith("abcd2345  make  web:write  1 of 2")
    assert line.endswith(", the client has left  POST api.example:443/\\x1b[31mx")
    assert foot.startswith("1 request;")
    wished = called(answers=[{"approvals": [{**one, "wish": "asked"}]}])[1].splitlines()[1]
    assert ", asked by the agent  POST api.example:443/" in wished
    ref = "push to git.example:443/a/repository: update refs/heads/" + "long/" * 20 + "main"
    assert called(answers=[{"approvals": [{**one, "line": ref}]}])[1].splitlines()[1].endswith(ref)
    again = {**one, "id": "efgh2345", "stale": False}  # after its rule was changed: the first can let nothing out
    listed = called(answers=[{"approvals": [one, again, {**again, "id": "ijkl2345"}]}])[1].splitlines()
    assert [line.split()[0] for line in listed[1:-1]] == ["efgh2345", "ijkl2345", "abcd2345"]
    assert called("--task", "other", answers=[{"approvals": [one]}])[1] == "no approval request is pending\n"


HISTORY = """\
TIME (UTC)           ID        TASK             STATE             BY       WHAT
2026-11-21 01:00:00  abcd2345  make             approved          ada, bo  POST api.example:443/\\x1b[31mx: read it
                     gr4n7777                   grant                      web:write: this attempt, once
2026-11-21 01:00:05  efgh2345  a-longer-\\u202e  rejected, lifted  ada      GET api.example:443/
2026-11-21 01:00:09  ijkl2345  make             task ended                 GET api.example:443/
"""


def test_history_is_a_table_json_or_json_lines(called):
    one = {
        "id": "abcd2345", "task": "t1", "name": "make", "line": "POST api.example:443/\x1b[31mx", "state": "approved",
        "by": ["ada", "bo"], "why": "read it", "asked": 0, "answered": 1795222800.0,
        "grants": [{"id": "gr4n7777", "said": "web:write: this attempt, once"}],
        "rules": ["web:write"], "votes": "2 of 2", "wish": "", "stale": False,
    }  # fmt: skip
    get = {"line": "GET api.example:443/", "why": "", "grants": []}
    lifted = {
        "id": "efgh2345",
        "name": "a-longer-\u202e",
        "state": "rejected",
        "by": ["ada"],
        "lifted": True,
        "answered": 1795222805.0,
    }
    over = {"id": "ijkl2345", "state": "over", "by": [], "answered": None, "asked": 1795222809.0}
    rows = [one, {**one, **get, **lifted}, {**one, **get, **over}]
    answers = [{"approvals": rows}]
    assert called("history", answers=answers)[1] == HISTORY
    assert json.loads(called("history", "--format", "json", answers=answers)[1]) == rows
    for words in (("history",), ()):
        assert list(map(json.loads, called(*words, "--format", "jsonl", answers=answers)[1].splitlines())) == rows
    assert called("history", answers=[{"approvals": []}])[1] == "there are no earlier approval requests\n"


def test_list_is_as_wide_as_the_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    lines = list(table(("A", "B"), [("one", "x" * 100), ("y" * 100, "z")], 10))
    assert lines == ["A           B", "one         " + "x" * 27 + "…", "yyyyyyyyy…  z"]


def test_rule_files_are_named_by_their_shortest_path(monkeypatch, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    for name in ("web.yaml", "elsewhere/web.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path / "work")
    wanted = SimpleNamespace(rules=("../web.yaml", "../link/../web.yaml", "../gone/../web.yaml", "/etc/../none.yaml"))
    assert rule_files(wanted) == (
        f"{tmp_path}/web.yaml",
        f"{tmp_path}/work/../link/../web.yaml",  # which is another than the short one
        f"{tmp_path}/work/../gone/../web.yaml",
        "/etc/../none.yaml",
    )


def test_new_token_is_printed_with_its_hash_for_approvers_yaml(called):
    found = json.loads(called("token", "--format", "json")[1])
    assert found["hash"] == hash_token(found["token"])
    assert len(found["token"]) >= 43  # 256 bits


@as_user
def test_unknown_and_flagged_requests_are_shown(approvals_lab, attempts):
    done = approvals_lab.exeat("approve", "zzzz")
    assert (done.returncode, done.stderr) == (
        1,
        "exeat: there is no approval request `zzzz`; `exeat approvals` lists pending requests\n",
    )
    flagged = approvals_lab.exeat("flagged", "--task", "held")
    head, *lines, foot = flagged.stdout.splitlines()
    assert head.split() == ["ID", "TIME", "(UTC)", "TASK", "RULES", "WHAT"]
    assert {line.split()[4].rstrip(",") for line in lines} == {"held:cloning"}
    assert foot.startswith(f"{len(lines)} events;")
    named = lines[0].split()[0]
    first, second = approvals_lab.exeat("flagged", "ack", named[:-1]), approvals_lab.exeat("flagged", "ack", named)
    assert (first.stdout, second.stdout) == (
        "1 event acknowledged\n",
        "0 events acknowledged, 1 were acknowledged before\n",
    )
    assert named not in approvals_lab.exeat("flagged").stdout
    known = json.loads(approvals_lab.exeat("flagged", "--all", "--format", "json").stdout)
    assert [each["acknowledged"]["by"] for each in known if each["id"].endswith(named)] == ["owner"]


@as_root
def test_watch_prints_each_card_to_a_pipe_at_once(approvals_lab):
    task = approvals_lab.start("watched", "once", "/ask/watched")
    watch = approvals_lab.lab.start(
        ["exeat", "approvals", "watch"], user=approvals_lab.user, stdout=subprocess.PIPE, text=True
    )
    lines = iter(watch.stdout.readline, "")
    first = next(line for line in lines if "/ask/watched" in line)
    assert " pending: POST api.held.example:443/ask/watched" in first
    assert "\a" not in first
    assert any("exeat" in line and "approve" in line and "allows" in line for line in lines)
    watch.kill()
    watch.communicate()
    assert "rejected" in approvals_lab.answer(approvals_lab.waits("/ask/watched"), "reject")
    approvals_lab.done(task)


OWN, ROOTS = "your own approvals server", "root's approvals server"


@pytest.mark.parametrize(
    ("own", "host", "started", "said"),
    [
        pytest.param("x", "y", None, "x", id="one's own first"),
        pytest.param(None, "y", "z", "y", id="root's before one is started"),
        pytest.param(None, None, "z", "z", id="one is started"),
        pytest.param("not here", "y", None, "y", id="root's may know it"),
        pytest.param("not here", "not yours", None, f"{OWN}: not here; {ROOTS}: not yours", id="both say why"),
        pytest.param(
            None, "not yours", "not here", f"{ROOTS}: not yours; {OWN}: not here", id="and one that was started for it"
        ),
        pytest.param("not here", "not here", None, "not here", id="once where they say the same"),
        pytest.param("not here", None, None, "not here", id="where there is no other"),
    ],
)
def test_commands_choose_the_registry_of_the_user_or_of_root(monkeypatch, own, host, started, said):
    def answers(what):
        def ask(_request):
            if what is not None and " " in what:
                raise HostError(what)
            return None if what is None else [what]

        return ask

    monkeypatch.setattr(client, "ask_running", answers(own))
    monkeypatch.setattr(approval_requests, "_elsewhere", answers(host))
    monkeypatch.setattr(client, "ask", answers(started))
    monkeypatch.setattr(client, "is_running", lambda: own is not None)
    try:
        found = approval_requests.send_request(argparse.Namespace(token_file=None), {"what": "show"})
    except ExeatError as error:
        found = [str(error)]
    assert found == [said]


def test_refusal_of_roots_registry_is_reported(monkeypatch, capsys):
    """It said that nothing waits, where somebody waits in the registry that this user may not see."""

    def refuses(_request):
        raise client.ServerRefusedError("lena may not approve: `approvers.yaml` names nobody", 1)

    monkeypatch.setattr(client, "ask", lambda _request: [{"approvals": []}])
    monkeypatch.setattr(approval_requests, "_elsewhere", refuses)
    assert approval_requests.send_to_all(argparse.Namespace(token_file=None), {"what": "list"}) == [{"approvals": []}]
    assert capsys.readouterr().err == (
        "exeat: root's approvals server: lena may not approve: `approvers.yaml` names nobody\n"
    )


@pytest.mark.parametrize(
    ("ours", "roots", "heard", "says"),
    [
        (["a", "b"], ["c"], {"a", "b", "c"}, ""),
        (["a"], [], {"a"}, ""),
        ([], ["c"], {"c"}, ""),
        (["a"], HostError("not yours"), {"a"}, "exeat: root's approvals server: not yours\n"),
        (HostError("broken"), ["c"], {"c"}, "exeat: your own approvals server: broken\n"),
        (HostError("same"), HostError("same"), None, ""),
    ],
)
def test_ordinary_user_watches_both_registries(  # noqa: PLR0917 - a table
    monkeypatch, capsys, ours, roots, heard, says
):
    """`list` showed the questions of both, and `watch` those of one's own."""

    def follows(what):
        def follow(_request):
            if isinstance(what, HostError):
                raise what
            yield from ({"text": each} for each in what)

        return follow

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(client, "follow", follows(ours))
    monkeypatch.setattr(client, "follow_host", follows(roots))
    following = approval_requests.follow(argparse.Namespace(token_file=None), {"what": "watch"})
    if heard is None:
        with pytest.raises(ExeatError, match="same"):
            list(following)
        return
    assert {said["text"] for said in following} == heard
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_terminal_bell_rings_for_new_requests_only(called, monkeypatch, terminal):
    said = [{"kind": kind, "text": f"a card, {kind}"} for kind in ("asked", "answered")]
    monkeypatch.setattr(client, "follow", lambda _what: iter(said))
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    status, out, err, _ = called("watch")
    assert (status, "has ended" in err) == (1, True)
    assert out.count("\a") == terminal
    assert ("asked\n\a\n" in out) is terminal


def test_status_marks_tainted_and_waiting_tasks(monkeypatch, capsys):
    box = {"name": "n", "pid": 7, "worker": 1, "began": 0.0, "attached": "", "workspace": "/w"}
    monkeypatch.setattr(
        control_client, "send_request", lambda _what: [{"sandboxes": [{**box, "task": str(n)} for n in range(3)]}]
    )
    known = [{"task": "0", "pending": 2, "tainted": True}, {"task": "1", "pending": 0, "tainted": True}]
    monkeypatch.setattr(client, "ask_running", lambda _what: [{"tasks": known}])
    assert main(["ps"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [re.split(" {2,}", row)[-2] for row in rows] == ["2 pending, tainted", "tainted", "-"]


def test_status_shows_the_service_when_the_registry_fails(monkeypatch, capsys):
    def fails(_what):
        raise HostError("the approvals server does not answer")

    box = {"task": "0", "name": "n", "pid": 7, "worker": 1, "began": 0.0, "attached": "", "workspace": "/w"}
    service = {"pid": 1, "began": 0.0, "control": "/c", "journal": "/j", "restarts": 0, "sandboxes": 1, "alone": [], "keyholder": 2, "workers": [{"number": 0, "pid": 3, "uid": 4, "sandboxes": 1}]}  # fmt: skip
    monkeypatch.setattr(
        control_client, "send_request", lambda what: [service if what["what"] == "status" else {"sandboxes": [box]}]
    )
    monkeypatch.setattr(client, "ask_running", fails)
    assert main(["ps"]) == 0
    said = capsys.readouterr()
    assert re.split(" {2,}", said.out.splitlines()[1])[-2] == "?"
    assert said.err.endswith("are unknown: the approvals server does not answer\n")
    assert main(["status"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the service runs as process 1")
    assert lines[-1] == "approvals: the approvals server does not answer"


def test_status_shows_the_registry_without_a_service(monkeypatch, capsys):
    def nowhere(_what):
        raise HostError("there is no place where a service could listen")

    monkeypatch.setattr(control_client, "send_request", nowhere)
    registry = {"pid": 7, "socket": "/r/socket", "gates": 1, "pending": 2, "told": [], "broken": ""}
    monkeypatch.setattr(client, "ask_running", lambda _what: [registry])
    assert main(["status"]) == 125
    assert capsys.readouterr().err.splitlines() == [
        "exeat: there is no place where a service could listen",
        "exeat: approvals: process 7 on /r/socket, 1 gate, 2 pending",
    ]


def test_inspected_connection_is_listed_by_its_requests(tmp_path, monkeypatch, capsys):
    told = [
        full_event(kind)._replace(
            time=now,
            id=f"01a1fbac-5503-7e75-bce9-8bc86d516a{now:02}",
            verdict=verdict,
            outcome=Outcome.PASSED,
            cause=cause,
        )
        for now, (kind, verdict, cause) in enumerate(
            [
                (Kind.CONNECTION_DECIDED, Verdict.FLAG, None),  # nobody looks into it
                (Kind.CONNECTION_DECIDED, Verdict.FLAG, None),
                (Kind.REQUEST_DECIDED, Verdict.ALLOW, "01a1fbac-5503-7e75-bce9-8bc86d516a01"),
                (Kind.CONNECTION_DECIDED, Verdict.FLAG, None),
                (Kind.REQUEST_DECIDED, Verdict.FLAG, "01a1fbac-5503-7e75-bce9-8bc86d516a03"),
            ]
        )
    ]
    (tmp_path / "1970-01-01").mkdir()
    (tmp_path / "1970-01-01" / "0001.jsonl").write_bytes(b"".join(map(encode, told)))
    monkeypatch.setattr(flagged, "_acknowledged", dict)
    assert main(["flagged", "--format", "json", "--journal", str(tmp_path)]) == 0
    assert [each["id"][-2:] for each in json.loads(capsys.readouterr().out)] == ["00", "04"]


def test_reviewed_flagged_events_are_not_listed_again(monkeypatch, capsys):
    event = full_event(Kind.REQUEST_DECIDED)
    monkeypatch.setattr(flagged, "_flagged", lambda _arguments: ([event], 0))
    for known, foot in (
        ({}, "1 event; `exeat log show ID` shows details; acknowledge them with `exeat flagged ack ID` or `--all`"),
        ({event.id: ("ada", 0.0)}, "1 event, all acknowledged"),
    ):
        monkeypatch.setattr(flagged, "_acknowledged", lambda known=known: known)
        assert main(["flagged", "--all"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == foot


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("sh -c '" + " " * 80 + "exeat: approved'", "sh -c ' " + "\\x20" * 22 + "\\x2…"),
        (f"GET api.good.example.{'a.' * 90}evil.example:443/x", f"GET …{'a.' * 41}evil.example…"),
    ],
)
def test_request_summary_is_one_line_with_its_destination(what, shown):
    said = {"asked": {"id": "k3x9abcd", "what": what, "rules": "web:writing"}}
    line = _asked(json.dumps(said).encode())
    assert line == f"approval requested: {shown} (web:writing): `exeat approvals show k3x9abcd`"
