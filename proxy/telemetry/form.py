"""What connections that are alike have in common in what is told of them: encoded once, and filled in for each.

A connection that passes and ends by itself, like many before it, differs from them in when, how much and how long.
Pure. Whatever else there is to tell of one is encoded as always.
"""

import re
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from proxy.telemetry.events import Kind
from proxy.telemetry.pieces import duration, timestamp

if TYPE_CHECKING:
    from rules.decision import Decision
    from rules.verdicts import Outcome, Reason, Verdict

# No text that somebody else wrote can look like these: within a string, quotes are escaped.
_DECIDED: Final = re.compile(r'\{"time":"[^"]+","id":"[^"]+"(.*\n)')
_CLOSED: Final = re.compile(
    r'\{"time":"[^"]+","id":"[^"]+"(.*?),"cause":"[^"]+"(.*?),"bytes":\{"up":0,"down":0\},"duration":[0-9.]+(.*\n)'
)


class Form(NamedTuple):
    """The lines of one connection's two events, without what is its own."""

    decision: "Decision"
    name: str | None
    address: object
    told: str  # behind the id
    ended: tuple[str, str, str]  # before the cause, before the bytes, behind the duration
    key: "tuple[Kind, Verdict, Outcome, Reason]"  # as decisions are counted

    @classmethod
    def of(cls, decision: "Decision", name: str | None, address: object, lines: list[bytes]) -> Self:
        """Take the form of what was told of a connection to there, over which no byte went. Raises ValueError."""
        if len(lines) != len(("decided", "closed")):
            raise ValueError("one event for the decision and one for the end")
        decided, closed = _DECIDED.fullmatch(lines[0].decode("ascii")), _CLOSED.fullmatch(lines[1].decode("ascii"))
        if decided is None or closed is None:
            raise ValueError("these are no events of a connection over which nothing went")
        key = Kind.CONNECTION_DECIDED, decision.verdict, decision.outcome, decision.reason
        return cls(decision, name, address, decided[1], (closed[1], closed[2], closed[3]), key)

    @property
    def pieces(self) -> tuple[bytes, bytes, bytes, bytes]:
        """What compiled code fills the rest in between (`compiled/telling.c`): each line without its last brace."""
        before, between, after = self.ended
        whole = self.told.removesuffix("}\n"), before, between, after.removesuffix("}\n")
        first, second, third, fourth = (each.encode("ascii") for each in whole)
        return first, second, third, fourth

    def decided(self, now: int, own: str) -> bytes:
        """Return the line of a decision, made at `now` (ns since 1970), with an id."""
        return f'{{"time":"{timestamp(now)}","id":"{own}"{self.told}'.encode("ascii")

    def closed(self, now: int, own: str, cause: str, moved: tuple[int, int], seconds: float) -> bytes:
        """Return the line of an end with an id, the decision's id, and how many bytes went up and down."""
        before, between, after = self.ended
        return (
            f'{{"time":"{timestamp(now)}","id":"{own}"{before},"cause":"{cause}"{between},"bytes":{{"up":{moved[0]},'
            f'"down":{moved[1]}}},"duration":{duration(seconds)}{after}'
        ).encode("ascii")
