"""Decisions of every verdict."""

from rules.decision import Decision
from rules.verdicts import Outcome, Reason, Verdict
from tests.proxy.telemetry.telemetry_harness import REVISION

FLAGGED = Decision(Verdict.FLAG, Outcome.PASSED, Reason.RULE, ("web:files", "web:pages"), REVISION)
AUDITED = Decision(Verdict.DENY, Outcome.WOULD_BLOCK, Reason.NO_RULE, (), REVISION)
FAILED = Decision(Verdict.ALLOW, Outcome.FAILED, Reason.UNRESOLVED, ("web:pages",), REVISION)
CAUSE = "01a1fbac-5503-7e75-bce9-8bc86d516a2a"
