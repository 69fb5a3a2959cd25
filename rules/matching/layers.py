"""Files that vote alone, and what is made of several votes: the strictest.

A layer's rules are in the pool as well; what its own vote adds is that no rule of another file can speak where it does.
Nothing here may make a vote less strict, and nobody else's settings may make a layer's laxer.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rules.itself import Itself
from rules.settings import Settings
from rules.verdicts import DnsMode, LayerKind, Mode, OnJournalFailure, Outcome, Reason, Scan, TlsMode, Trust, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rules.decision import Decision
    from rules.grammar.document import Node
    from rules.rule import Rule

_RANKS: Final[dict[str, tuple[object, ...]]] = {  # strictest first
    "mode": (Mode.ENFORCE, Mode.AUDIT),
    "tls": (TlsMode.INSPECT, TlsMode.SPLICE),
    "dns": (DnsMode.SYNTHETIC, DnsMode.REAL),
    "on_journal_failure": (OnJournalFailure.BLOCK, OnJournalFailure.CONTINUE),
}
_PROXY: Final = ("upstream", "upstream_auth", "upstream_except")  # of one file, or of several that say the same
_UPSTREAM: Final = (*_PROXY, "upstream_ca")
_PASSING: Final = {Verdict.DENY: 0, Verdict.ASK: 3, Verdict.FLAG: 5, Verdict.ALLOW: 6}  # of what passes: `rank`


class _Layer(NamedTuple):
    kind: LayerKind
    name: str
    rules: "tuple[Rule, ...]"
    mode: Mode = Mode.ENFORCE
    tls: TlsMode = TlsMode.INSPECT
    roots: bool = False
    says: frozenset[str] = frozenset()


class Layer(Itself, _Layer):
    """A file, with what it includes. `mode` and `tls` are its own: what others audit or splice is not, here.

    `roots`: the file is root's own. `says`: the settings that stand in it, by key.
    """

    __slots__ = ()


class Said(NamedTuple):
    """The settings of one file, and where each stands."""

    file: str
    layer: bool
    settings: Settings
    nodes: "Mapping[str, Node]"


class Objection(NamedTuple):
    """A setting that its file can't have."""

    file: str
    node: "Node"
    message: str


def agree(said: "Iterable[Said]") -> tuple[Settings, list[Objection]]:
    """Bring the settings of several files to one: those of layers, tightened by others and never loosened."""
    found: dict[str, Any] = {}
    by: dict[str, str] = {}
    objections: list[Objection] = []
    files = sorted(said, key=lambda each: not each.layer)
    proxy = next((each for each in files if "upstream" in each.nodes), None)
    for each in files:
        for key, node in each.nodes.items():
            value = getattr(each.settings, key, None)
            if key in _UPSTREAM and not each.layer and any(other.layer for other in files):
                objections.append(Objection(each.file, node, f"`{key}` belongs to layers where there are some"))
            elif key in _PROXY and proxy is not None and proxy.file != each.file:
                if key == "upstream" and any(getattr(proxy.settings, k) != getattr(each.settings, k) for k in _PROXY):
                    message = f"`upstream` and what is said of it are others in `{proxy.file}`: leave them out here"
                    objections.append(Objection(each.file, node, message))
            elif key not in found:
                found[key], by[key] = value, each.file
            elif _strictness(key, value) > _strictness(key, found[key]) and not each.layer:
                message = f"`{key}` is laxer here than in `{by[key]}`, a layer: other files can only tighten it"
                objections.append(Objection(each.file, node, message))
            elif key not in _RANKS and key != "idle_timeout" and value != found[key]:
                message = f"`{key}` is another in `{by[key]}`, a layer: leave it out here"
                objections.append(Objection(each.file, node, message))
            elif _strictness(key, value) < _strictness(key, found[key]):
                found[key], by[key] = value, each.file
    return Settings(**found), objections


def strictest(key: str, values: "Iterable[Any]") -> Any:
    """Give the strictest of several values of a setting; of one that is neither strict nor lax, the first."""
    return min(values, key=lambda value: _strictness(key, value))


def _strictness(key: str, value: Any) -> float:
    """Rank the values of a setting, the strictest lowest; those that are neither are all the same."""
    if key == "idle_timeout":
        return float(value)
    return _RANKS[key].index(value) if key in _RANKS else 0


def reached[T](start: T, names: "Mapping[T, Sequence[T]]") -> "Iterable[T]":
    """List what `start` names, directly or through others, itself first."""
    found: dict[T, None] = {start: None}
    waiting = [start]
    while waiting:
        new = [other for other in names.get(waiting.pop(), ()) if other not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return found


def rank(decision: "Decision") -> int:
    """Rank decisions: what lets more out is higher."""
    if decision.outcome is Outcome.PASSED:
        return _PASSING[decision.verdict]
    if decision.outcome is Outcome.WOULD_BLOCK:
        return 4
    if decision.asks:
        return 2
    return 1 if decision.reason is Reason.APPROVAL_UNAVAILABLE else 0  # an ask that no grant could help


def stricter(one: "Decision", other: "Decision") -> "Decision":
    """Give the stricter of two votes, with what either asks for besides."""
    winner, loser = (other, one) if rank(other) < rank(one) else (one, other)
    if winner.outcome is Outcome.BLOCKED and not winner.asks:
        told = winner.pattern is not None or loser.pattern is None
        return winner._replace(pattern=winner.pattern if told else loser.pattern, in_full=False)
    asked = (winner, loser) if winner.asks is loser.asks else (winner,)
    ends = [decision.expires for decision in (winner, loser) if decision.expires is not None]
    merged = winner._replace(
        inspect=winner.inspect or loser.inspect,
        idle_timeout=min(winner.idle_timeout, loser.idle_timeout),
        limits=tuple(sorted({*winner.limits, *loser.limits}, key=lambda named: named[0])),
        approval=tuple(dict.fromkeys(asks for decision in asked for asks in decision.approval)),
        expires=min(ends, default=None),
        pattern=loser.pattern if winner.pattern is None else winner.pattern,
        scan=Scan.strictest((winner.scan, loser.scan)),
        trust=winner.trust if winner.trust is Trust.UNTRUSTED else loser.trust,
        in_full=False,
    )
    return winner if merged == winner else merged
