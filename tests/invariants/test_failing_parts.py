"""Invariant 2: when a part of the worker raises, nothing passes, the error is recorded, and the next connection works."""

import json

import pytest

from .attempt_network import RULES, dns_names
from .failing_parts import PARTS
from .lab_runner import PYTHON, TASK, Journal, only_as_ordinary_user

# The gate does not depend on the user, but its journal and ids do: as root one part of each stage is tried.
FOR_ROOT = (
    "proxy.gate.listener:ConnectionRecord", "rules.matching.policy:Policy.decide", "proxy.dialing.dialer:Dialer.connect", "proxy.gate.splice:Splice.start",
    "proxy.telemetry.journal.writer:Journal.append", "proxy.inspection.pipeline:Pipeline.decide",
)  # fmt: skip

TASK_PROGRAM = """
import json, socket, sys
import task.wire
task.wire.PATIENCE = 20  # connections are reset at once
from task.wire import ask, connect, request, tls
from task.attempts import reason
parts = json.loads(sys.argv[1])
def raw(host):
    sock = connect(host, 22)
    return {"status": 200 if b"220" in sock.recv(100) else 0}
ways = {
    "inspected": ("allowed", lambda host: ask(tls(host), request(host))),
    "spliced": ("spliced", lambda host: ask(tls(host), request(host))),
    "clear": ("allowed", lambda host: ask(connect(host, 80), request(host))),
    "raw": ("raw", raw),
}
def tried(way, label):
    zone, function = ways[way]
    try:
        return function(f"{label}-{way}.more.{zone}.example")
    except OSError as error:
        return {"error": reason(error)}
known = {}
look_up = socket.getaddrinfo
def remembered(host, *more, **named):
    # Lookups pass some of the parts as well, so they are made before any part raises.
    return look_up(known.get(host, host), *more, **named)
socket.getaddrinfo = remembered
said = {}
for number, part, by in parts:
    for way in by.split():
        host = f"part-{number}-{way}.more.{ways[way][0]}.example"
        known[host] = socket.gethostbyname(host)
    socket.gethostbyname(f"arm-{number}.mark.example")
    said[part] = {way: tried(way, f"part-{number}") for way in by.split()}
    socket.gethostbyname("arm-none.mark.example")
    said[part]["afterwards"] = tried("inspected", f"after-{number}")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def failing_run(runner):
    """Return the results of the task by part, stderr of exeat, the journal, and requests at the origins."""
    runner.lab.origin.name(dns_names())
    runner.lab.origin.forget()
    parts = [(number, *each) for number, each in enumerate(PARTS.items()) if runner.user or each[0] in FOR_ROOT]
    words = runner.command_line("raised", runner.rules(RULES), PYTHON, "-c", TASK_PROGRAM, json.dumps(parts))
    entry = TASK.parent / "failing_parts.py"
    done = runner.lab.run(["python", entry, *words[1:]], user=runner.user, cwd=runner.workspace("raised"), timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr, Journal(runner.journal("raised")), runner.lab.origin.requests()


@only_as_ordinary_user
@pytest.mark.parametrize("part", PARTS)
def test_part_that_raises_lets_nothing_pass(failing_run, part):
    _nothing_passed(failing_run, part)


def test_parts_that_raise_let_nothing_pass_for_any_user(failing_run, runner):
    assert set(failing_run[0]) == set(PARTS if runner.user else FOR_ROOT)
    for part in failing_run[0]:
        _nothing_passed(failing_run, part)


def _nothing_passed(failing_run, part):
    results, _, _, requests = failing_run
    number = list(PARTS).index(part)
    passed = {way: one for way, one in results[part].items() if way != "afterwards" and one.get("status") == 200}
    assert passed == {}
    assert [one["authority"] for one in requests if one["authority"].startswith(f"part-{number}-")] == []
    assert results[part]["afterwards"].get("status") == 200, "the gate did not recover"


def test_clients_are_reset_at_once_when_a_part_raises(failing_run):
    """No client waits: each is reset or receives a page with gate_error."""
    results, _, _, _ = failing_run
    hung = {
        (part, way): one
        for part, ways in results.items()
        for way, one in ways.items()
        if one.get("error") == "TimeoutError"
    }
    assert hung == {}


def test_every_part_that_raised_is_in_a_gate_error(failing_run):
    results, _, journal, _ = failing_run
    recorded = " ".join(event["fault"]["detail"] for event in journal.of(kind="gate.error"))
    assert {
        part for part in results if part not in recorded and not part.endswith((":encode", "Journal.append"))
    } == set()


def test_worker_ends_normally_after_parts_raised(failing_run):
    """A connection in a bad state does not keep others from being closed and counted."""
    _, stderr, _, _ = failing_run
    assert "the gate was lost" not in stderr
