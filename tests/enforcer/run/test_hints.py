"""What a run says at its end of what its task came up against, where the task's programs don't show it."""

import pytest

from enforcer.cli.run import find_hints
from proxy.telemetry.events import Kind
from proxy.telemetry.prometheus.metrics import Tally
from proxy.telemetry.summary import Summary
from rules.verdicts import Outcome, Reason

OWN = "can't make one of its own inside; switch its own off: "


def said(tally, command="sh"):
    return list(find_hints(Summary.decode(tally.summary().encode()), command))


def blocked(*attempts):
    tally = Tally()
    for name, reason in attempts:
        tally.decided(Kind.REQUEST_DECIDED, Outcome.BLOCKED, name, None, reason=reason)
    return tally


def test_first_blocked_hosts_are_named_with_their_reason():
    """pip, poetry and `curl -f` say "403" or less, and not what the page says."""
    attempts = [("index.example", Reason.NO_RULE), ("a.example", Reason.RULE), ("index.example", Reason.LEAK)]
    assert said(blocked(*attempts)) == [
        "index.example was blocked: no rule allows this",
        "a.example was blocked: a rule denies this",
    ]
    many = said(blocked(*((f"h{number}.example", Reason.NO_RULE) for number in range(9))))
    assert len(many) == 3


def test_hostile_host_name_is_escaped():
    (line,) = said(blocked(("\x1b[2Jevil.example\u202e" + "x" * 300, Reason.NO_RULE)))
    assert line.isprintable()
    assert len(line) < 120


@pytest.mark.parametrize("call", ["unshare", "clone", "mount", "pivot_root"])
@pytest.mark.parametrize(
    ("command", "switch"),
    [
        ("/usr/bin/codex", "`codex --sandbox danger-full-access`"),
        ("claude", 'its setting `{"sandbox": {"enabled": false}}`'),
        ("gemini", "`GEMINI_SANDBOX=false gemini`"),  # the variable goes before `--sandbox`
        ("chromium", "`--no-sandbox`"),
        ("sh", "its own manual says how (docs/reference/sandbox.md has some)"),
    ],
)
def test_nested_sandbox_attempt_gets_a_hint(call, command, switch):
    tally = Tally()
    tally.count_denied_call(call)
    (line,) = said(tally, command)
    assert line.startswith(f"`{call}` was refused: the task is in a sandbox already")
    assert line.endswith(OWN + switch)


def test_only_sockets_and_namespaces_have_hints():
    tally = Tally()
    for call in ("keyctl", "chmod", "bpf"):
        tally.count_denied_call(call)
    assert said(tally) == []
    tally.count_denied_call("socket")
    (line,) = said(tally)
    assert "ping(8)" in line


def test_dropped_telemetry_is_counted():
    tally = Tally()
    tally.dropped += 12
    assert said(tally) == [
        "12 records of its own telemetry dropped: it sent more than is kept (docs/reference/agent-telemetry.md)"
    ]


SCRIPT = """
unshare -Ur true 2>/dev/null
python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)' 2>/dev/null
getent hosts index.example
true
"""


def test_run_prints_hints_after_its_counts(someone):
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")
    words = ("run", "--rules", rules, "--", "sh", "-c", SCRIPT)
    lines = someone.exeat(*words).stderr.decode().splitlines()
    assert "exeat: index.example was blocked: no rule allows a connection to this name" in lines
    assert any("`unshare` was refused: the task is in a sandbox already" in line for line in lines), lines
    assert any("`socket` was refused: only TCP and UDP leave" in line for line in lines), lines
    assert lines[-1].startswith("exeat: see what was tried and why with `exeat log")
    assert someone.exeat("run", "--quiet", *words[1:]).stderr == b""


def test_task_gets_the_git_identity_of_its_caller(someone):
    """Without one git makes no commit; the task's home, where git would look, is empty."""
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")
    script = "git init -q . && git commit -q --allow-empty -m x && git log -1 --format='%an %ce'"
    identity = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "Ann"), ("EMAIL", "ann@a.example"))}  # fmt: skip
    done = someone.exeat("run", "--quiet", "--rules", rules, "--", "sh", "-c", script, env=identity)
    assert done.stdout == b"Ann ann@a.example\n", done.stderr
