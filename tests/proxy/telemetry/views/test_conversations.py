"""`exeat log chain`: agent reports joined with actions by call, time, process and approval."""

import json
import time

import pytest

from enforcer.cli import main
from proxy.approvals.approval_request import Program
from proxy.approvals.model import Approval, ApprovalState, PreRequestKind
from proxy.approvals.recording import ApprovalRecorder
from proxy.telemetry.events import Agent, Answer, Http, Kind, Origin, Process
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.views.conversations import MOST
from rules.attempt import Protocol
from tests.proxy.approvals.sample_requests import CONNECTION, REQUEST
from tests.support.telemetry_lab import ALLOWED, DENIED, FLAGGED, HOSTILE, connect, recorder_lab

SECOND = 1_000_000_000
CURL = Process(7, "/usr/bin/curl", ("curl",), 1000, ("/usr/bin/codex",))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return recorder_lab(tmp_path / "exeat" / "journal")


@pytest.fixture
def told(here):
    """Two agents in one task. Each gets a prompt and calls a tool; the call of the first is blocked."""
    other = recorder_lab(here.directory, "t-2", "build")
    now, ids = time.time_ns(), {}

    def say(name, ago, *, conversation="c-1", call="", tool="", recorder=here.recorder, **attributes):
        agent = Agent("log", name, "codex", conversation, call, tool, now - int(ago * SECOND), attributes)
        recorder.agent_said(agent)

    say("codex.user_prompt", 60, prompt="an earlier one")
    say("codex.tool_decision", 50, call="call_0", tool="shell")
    say("codex.tool_result", 49, call="call_0", tool="shell")
    ids["before"] = connect(here.recorder, process=CURL)
    say("codex.user_prompt", 20, prompt="get it from evil.example")
    say("codex.tool_decision", 2, call="call_1", tool="shell", arguments="curl https://evil.example")
    say("codex.user_prompt", 15, conversation="c-2", prompt="something else")
    say("codex.tool_decision", 1, conversation="c-2", call="call_1", tool="shell")
    say("codex.user_prompt", 5, recorder=other.recorder, prompt="of another task: evil.example")
    ids["refused"] = connect(here.recorder, DENIED, name="evil.example", process=CURL, approval="k3x9abcd")
    connect(other.recorder, DENIED, name="evil.example", process=CURL)
    asking = ApprovalRecorder(here.recorder.origin, Journal(here.directory))
    approval = asked_about(CONNECTION)
    asking.asked(approval, joined=False)
    asking.answered(approval, Answer.REJECTED, ["ada"], grants=())
    say("codex.tool_result", -1, call="call_1", tool="shell", duration_ms="3000")
    return here, ids


def asked_about(question):
    """An approval that `approval="k3x9abcd"` of a decision names."""
    return Approval("k3x9abcd", "t", ApprovalState.PENDING, PreRequestKind.NONE, "", question, "", 1.8e9, 1.8e9)


NODE = Process(100, "/usr/bin/node", ("codex",), 1000)
OTHER = Process(200, "/usr/bin/node", ("codex",), 1000)
COLLECTOR = Process(300, "/usr/bin/collector", ("collector",), 1000)
BELOW = Process(150, "/usr/bin/curl", ("curl",), 1000, ("/bin/sh", "/usr/bin/node"), (140, 100))


@pytest.mark.parametrize(
    ("senders", "heard", "done"),
    [
        ((NODE, OTHER), ["c-1"], [150]),
        ((None, OTHER), ["c-1", "c-2"], [150, 250]),  # the unknown process may be either
        ((COLLECTOR, COLLECTOR), ["c-1", "c-2"], [150, 250]),  # one process sends for all of them
        ((NODE, NODE), ["c-1", "c-2"], [150]),  # two conversations of one agent
    ],
    ids=["each by itself", "unknown", "by a collector", "both by one"],
)
def test_conversation_of_an_ancestor_process_is_chosen(here, capfdbinary, senders, heard, done):
    now = time.time_ns()
    for conversation, sender in zip(("c-1", "c-2"), senders, strict=True):
        agent = Agent(
            "log", "codex.tool_decision", "codex", conversation, "call_1", "shell", now, {"duration_ms": "9000"}
        )
        here.recorder.agent_said(agent, sender)
    of_another = BELOW._replace(pid=250, ancestor_pids=(240, 200))
    below, _ = (connect(here.recorder, process=process) for process in (BELOW, of_another))
    value, _ = chained(capfdbinary, below)
    assert [conversation for conversation, _ in spoken(value)] == heard
    said = next(event["id"] for event in here.lines() if event["kind"] == "agent.said")
    value, _ = chained(capfdbinary, said)
    assert [event["process"]["pid"] for event in value["did"]] == done


def chained(capfdbinary, name):
    assert main(["log", "chain", name, "--format", "json"]) == 0
    value = json.loads(capfdbinary.readouterr().out)
    assert main(["log", "chain", name]) == 0
    return value, capfdbinary.readouterr().out.decode()


def spoken(value):
    return [(each["agent"]["conversation"], each["agent"]["name"]) for each in value["said"]]


def test_chain_of_an_action_has_the_agent_reports(capfdbinary, told):
    _, ids = told
    value, shown = chained(capfdbinary, ids["refused"])
    assert spoken(value) == [
        ("c-1", "codex.user_prompt"),
        ("c-1", "codex.tool_decision"),
        ("c-1", "codex.tool_result"),
        ("c-2", "codex.user_prompt"),
        ("c-2", "codex.tool_decision"),
    ]
    assert value["said"][0]["agent"]["attributes"]["prompt"] == "get it from evil.example"
    assert [each["id"] for each in value["process"]] == [ids["before"]]
    assert [each["kind"] for each in value["people"]] == ["approval.asked", "approval.answered"]
    for words in ("its claim:", "the task says codex.user_prompt (as codex)", "what people were asked", "same process"):
        assert words in shown


def test_chain_of_an_agent_report_has_the_actions(capfdbinary, told):
    here, ids = told
    events = {(event["agent"]["call"], event["agent"]["name"]): event["id"] for event in here.lines()
              if event["kind"] == "agent.said" and event["agent"]["conversation"] == "c-1" and "call" in event["agent"]}  # fmt: skip
    for name in ("codex.tool_decision", "codex.tool_result"):
        value, shown = chained(capfdbinary, events["call_1", name])
        assert ids["refused"] in [each["id"] for each in value["did"]]
        assert {each["task"]["id"] for each in value["did"]} == {"t-1"}
        assert "codex.user_prompt" in {said for _, said in spoken(value)}
        assert "what the gate saw of the task meanwhile:" in shown
    value, _ = chained(capfdbinary, events["call_0", "codex.tool_decision"])
    assert value["did"] == []


def test_request_uses_the_process_of_its_connection(capfdbinary, told):
    here, ids = told
    one = here.recorder.decided(
        Kind.REQUEST_DECIDED, ALLOWED, name="www.example.com", address=None, port=443, protocol=Protocol.TLS,
        http=Http("GET", "www.example.com", "/"), cause=ids["before"],
    )  # fmt: skip
    value, _ = chained(capfdbinary, one)
    assert ids["refused"] in [each["id"] for each in value["process"]]
    assert ids["before"] not in [each["id"] for each in value["process"]]


def test_chain_shows_no_event_twice(capfdbinary, here):
    """Regression: an approval request about a program was listed again as its action."""
    connection = connect(here.recorder, process=CURL)
    asking = ApprovalRecorder(here.recorder.origin, Journal(here.directory))
    approval = asked_about(REQUEST._replace(process=Program(CURL.pid, CURL.exe, CURL.argv), event=connection))
    asking.asked(approval, joined=False)
    asking.answered(approval, Answer.APPROVED, ["ada"], grants=())
    request = here.recorder.decided(
        Kind.REQUEST_DECIDED, ALLOWED, name="www.example.com", address=None, port=443, protocol=Protocol.TLS,
        http=Http("GET", "www.example.com", "/"), cause=connection, process=CURL, approval="k3x9abcd",
    )  # fmt: skip
    here.recorder.completed(
        request, name="www.example.com", address=None, port=443, protocol=Protocol.TLS, http=Http(status=200),
        up=1, down=2, seconds=0.1,
    )  # fmt: skip
    for event in (connection, request, *(line["id"] for line in here.lines() if line["kind"].startswith("approval."))):
        value, shown = chained(capfdbinary, event)
        ids = [line.removesuffix(" <--").rpartition("  ")[2] for line in shown.splitlines() if line.strip()]
        assert len(ids) == len(set(ids)), shown
        kinds = [each["kind"] for each in value["people"]]
        assert not [each for each in value["process"] if each["kind"].startswith("approval.")], kinds


def test_chain_of_a_flagged_event_has_its_reviews(capfdbinary, told):
    here, _ = told
    flagged = connect(here.recorder, FLAGGED)
    ApprovalRecorder(Origin(host="host.example"), Journal(here.directory)).looked_at(flagged, "ada")
    value, shown = chained(capfdbinary, flagged)
    assert [(each["kind"], each["by"]) for each in value["people"]] == [("flag.seen", "ada")]
    assert f"flagged event {flagged} reviewed by ada" in shown


def test_repeated_actions_leave_room_for_rare_ones(capfdbinary, here):
    """A process that looks up name after name, and a question that is put again and again."""
    asking = ApprovalRecorder(here.recorder.origin, Journal(here.directory))
    approval = asked_about(CONNECTION)
    here.recorder.agent_said(Agent("log", "tool_decision", tool="shell", call="c", at=time.time_ns()))
    for _ in range(MOST + 50):
        lookup = {"name": "n.example", "address": None, "port": 53, "protocol": Protocol.UDP, "process": CURL}
        here.recorder.decided(Kind.DNS_DECIDED, ALLOWED, **lookup)
        asking.asked(approval, joined=False)
    sent = connect(here.recorder, process=CURL)
    asking.answered(approval, Answer.APPROVED, ["ada"], grants=())
    refused = connect(here.recorder, DENIED, process=CURL, approval="k3x9abcd")
    here.recorder.agent_said(Agent("log", "tool_result", tool="shell", call="c", at=time.time_ns()))
    value, _ = chained(capfdbinary, refused)
    assert sent in [each["id"] for each in value["process"]]
    assert "approval.answered" in [each["kind"] for each in value["people"]]
    assert max(len(value["process"]), len(value["people"])) <= MOST
    said = next(line["id"] for line in here.lines() if line["kind"] == "agent.said")
    value, _ = chained(capfdbinary, said)
    assert sent in [each["id"] for each in value["did"]]


@pytest.mark.parametrize("name", HOSTILE)
def test_agent_text_sends_no_escape_sequence(capfdbinary, told, name):
    here, _ = told
    text = HOSTILE[name]
    here.recorder.agent_said(Agent("span", text, text, text, text, text, -5, {text: text, "duration_ms": text}))
    one = connect(here.recorder, DENIED, name=text)
    for each in (one, here.lines()[-2]["id"]):
        _, shown = chained(capfdbinary, each)
        assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize("took", ["nan", "inf", "-1", "1e400", "9" * 400, "x", ""])
def test_implausible_duration_is_ignored(capfdbinary, told, took):
    here, _ = told
    here.recorder.agent_said(Agent("log", "codex.tool_result", "codex", "c-9", "", "t", 0, {"duration_ms": took}))
    chained(capfdbinary, here.lines()[-1]["id"])
