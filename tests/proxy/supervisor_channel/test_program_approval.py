"""What people are asked about a program, and what comes of their leave once it is given."""

from types import SimpleNamespace

import pytest

from proxy.approvals.leases import Leases
from proxy.approvals.protocol import Answer, Result
from proxy.supervisor_channel import messages
from proxy.supervisor_channel.program_approval import ProgramApprovals, ProgramStart
from proxy.telemetry.events import CLIENT_LEFT, Process
from rules.decision import Decision
from rules.verdicts import Outcome, Reason, Verdict

PASSED = Decision(Verdict.ALLOW, Outcome.PASSED, Reason.APPROVAL_GRANTED)


def starting(given, found, called, *words):
    who = messages.ProcessInfo(7, 0, b"/bin/sh")
    asked = messages.StartRequest(
        1, who, tuple(map(str.encode, (given, found, called))), tuple(map(str.encode, words)), True
    )
    return ProgramStart(asked, (given, *words), Process(7, "/bin/sh"))


@pytest.mark.parametrize(
    ("names", "words", "shown"),
    [
        (("/w/tool", "/usr/bin/printf", "printf"), ("x",), ("/usr/bin/printf", "x")),
        (("/w/tool", "/usr/bin/printf", "./tool"), ("x",), ("/usr/bin/printf", "argv0=./tool", "x")),
        (("/bin/rm", "/bin/busybox", "rm"), ("x",), ("/bin/busybox", "argv0=rm", "x")),
        (("/bin/ls", "/bin/ls", "ls"), ("argv0=rm",), ("/bin/ls", "argv0=ls", "argv0=rm")),
        (("/bin/ls", "/bin/ls", ""), (), ("/bin/ls", "argv0=")),
    ],
    ids=["its own name", "a link", "a program of many names", "a word like it", "no name"],
)
def test_approval_request_names_the_file_behind_a_link(names, words, shown):
    assert starting(*names, *words).shown == shown


class ProgramApprovalLab:
    """A `ProgramApprovals` whose registry and watcher are this test."""

    def __init__(self):
        self.said, self.came, self.then = [], [], None
        self.asking = SimpleNamespace(submit=self._ask, leases=Leases(lambda *_: True))
        sandbox = SimpleNamespace(approvals=self.asking, sources=())
        self.leave = ProgramApprovals(
            sandbox, lambda *_: PASSED, self.said.append, lambda *what: self.came.append(what)
        )
        self.leave.submit(starting("/w/tool", "/usr/bin/printf", "printf", "x"), Decision())

    def _ask(self, question, then):
        self.question, self.then = question, then
        return SimpleNamespace(approval="ap-1", drop=lambda: None)

    @property
    def outcome(self):
        ((_, decision, detail, approval),) = self.came
        return decision.passes, decision.reason, detail, approval


def test_grant_serves_only_an_unchanged_pending_program():
    there, gone, changed = ProgramApprovalLab(), ProgramApprovalLab(), ProgramApprovalLab()
    for world in (there, gone, changed):
        assert world.question.argv == ("/usr/bin/printf", "x")
        world.leave.start_if_unchanged(1, "")  # said of nothing: nobody has answered
        world.then(Answer(1, Result.GRANTED, "ap-1"))
        assert not world.came
        assert world.said[-1] == messages.CheckStart(1)
    there.leave.start_if_unchanged(1, "")
    gone.leave.end(1)
    gone.leave.start_if_unchanged(1, "")
    changed.leave.start_if_unchanged(1, "exeat: it was changed")
    assert there.outcome == (True, Reason.APPROVAL_GRANTED, "", "ap-1")
    assert gone.outcome == (False, Reason.APPROVAL_TIMEOUT, CLIENT_LEFT, "ap-1")
    assert changed.outcome == (False, Reason.EXPIRED, "it was changed", "ap-1")
