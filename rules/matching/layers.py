"""Layers: files whose rules also decide alone. The strictest of the decisions wins.

A layer's rules are in the common pool as well. Its own decision can't be loosened by a rule or setting of another file.
Nothing here may make a decision less strict.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rules.verdicts import DnsMode, LayerKind, Mode, OnJournalFailure, Outcome, Reason, Scan, TlsMode, Trust, Verdict

if TYPE_CHECKING:
    from rules.decision import Decision
    from rules.rule import Rule

RANKS: Final[dict[str, tuple[object, ...]]] = {  # strictest first
    "mode": (Mode.ENFORCE, Mode.AUDIT),
    "tls": (TlsMode.INSPECT, TlsMode.SPLICE),
    "dns": (DnsMode.SYNTHETIC, DnsMode.REAL),
    "on_journal_failure": (OnJournalFailure.BLOCK, OnJournalFailure.CONTINUE),
}
_PASSING: Final = {
    Verdict.DENY: 0,
    Verdict.ASK: 3,
    Verdict.FLAG: 5,
    Verdict.ALLOW: 6,
}  # of what passes: `rank_decision`


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity
class Layer:
    """A file with its includes. `mode` and `tls` are its own: other files' settings don't apply to it."""

    kind: LayerKind
    name: str
    rules: "tuple[Rule, ...]"
    mode: Mode = Mode.ENFORCE
    tls: TlsMode = TlsMode.INSPECT
    roots: bool = False  # the file is root's own
    says: frozenset[str] = frozenset()  # the settings that stand in it, by key


def strictest_value(key: str, values: Iterable[Any]) -> Any:
    """Return the strictest of several values of a setting; the first for settings without a strictness."""
    return min(values, key=lambda value: strictness(key, value))


def strictness(key: str, value: Any) -> float:
    """Rank the values of a setting, the strictest lowest; 0 for settings without a strictness."""
    if key == "idle_timeout":
        return float(value)
    return RANKS[key].index(value) if key in RANKS else 0


def reachable[T](start: T, names: Mapping[T, Sequence[T]]) -> Iterable[T]:
    """List what `start` names, directly or through others, itself first."""
    found: dict[T, None] = {start: None}
    waiting = [start]
    while waiting:
        new = [other for other in names.get(waiting.pop(), ()) if other not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return found


def rank_decision(decision: "Decision") -> int:
    """Rank a decision; higher allows more."""
    if decision.outcome is Outcome.PASSED:
        return _PASSING[decision.verdict]
    if decision.outcome is Outcome.WOULD_BLOCK:
        return 4
    if decision.needs_approval:
        return 2
    return 1 if decision.reason is Reason.APPROVAL_UNAVAILABLE else 0  # an ask that no grant could help


def stricter_decision(one: "Decision", other: "Decision") -> "Decision":
    """Return the stricter of two decisions, with the limits, approvals and inspection that either requires."""
    winner, loser = (other, one) if rank_decision(other) < rank_decision(one) else (one, other)
    if winner.outcome is Outcome.BLOCKED and not winner.needs_approval:
        winner_applies = winner.pattern is not None or loser.pattern is None
        return winner._replace(pattern=winner.pattern if winner_applies else loser.pattern, logs_full_path=False)
    requiring = (winner, loser) if winner.needs_approval is loser.needs_approval else (winner,)
    ends = [decision.expires for decision in (winner, loser) if decision.expires is not None]
    merged = winner._replace(
        inspect=winner.inspect or loser.inspect,
        idle_timeout=min(winner.idle_timeout, loser.idle_timeout),
        limits=tuple(sorted({*winner.limits, *loser.limits}, key=lambda named: named[0])),
        approval=tuple(dict.fromkeys(asks for decision in requiring for asks in decision.approval)),
        expires=min(ends, default=None),
        pattern=loser.pattern if winner.pattern is None else winner.pattern,
        scan=Scan.strictest((winner.scan, loser.scan)),
        trust=winner.trust if winner.trust is Trust.UNTRUSTED else loser.trust,
        logs_full_path=False,
    )
    return winner if merged == winner else merged
