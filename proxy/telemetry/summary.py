"""How many attempts there were, for the two lines at the end of a run."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.telemetry.events import Kind
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a kind of decision is called in a sentence: one, several.
_NAMES = {
    Kind.REQUEST_DECIDED: ("request", "requests"),
    Kind.CONNECTION_DECIDED: ("connection", "connections"),
    Kind.DNS_DECIDED: ("lookup", "lookups"),
}
_WORDS = {
    Outcome.PASSED: "allowed",
    Outcome.BLOCKED: "blocked",
    Outcome.WOULD_BLOCK: "only audited",
    Outcome.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """Decision events by kind and outcome.

    Lookups, connections and requests are attempts of their own: one `curl` of an inspected page makes all three.
    """

    counts: "Mapping[tuple[Kind, Outcome], int]"

    @property
    def allowed(self) -> int:
        """How many attempts passed."""
        return self._with(Outcome.PASSED)

    @property
    def blocked(self) -> int:
        """How many attempts were blocked."""
        return self._with(Outcome.BLOCKED)

    @property
    def would_block(self) -> int:
        """How many attempts passed in audit mode that enforce mode would have blocked."""
        return self._with(Outcome.WOULD_BLOCK)

    @property
    def failed(self) -> int:
        """How many attempts were allowed and then failed: a name that didn't resolve, a host that didn't answer."""
        return self._with(Outcome.FAILED)

    def describe(self) -> str:
        """Return all of it in one line: `allowed 3 requests, 1 lookup; blocked 1 connection`."""
        parts = []
        for outcome, word in _WORDS.items():
            things = [
                f"{count} {names[count != 1]}"
                for kind, names in _NAMES.items()
                if (count := self._count(kind, outcome))
            ]
            if things:
                parts.append(f"{word} {', '.join(things)}")
        return "; ".join(parts) or "nothing was attempted"

    def encode(self) -> bytes:
        """Return it as JSON, for the process that prints it."""
        return json.dumps([[kind, outcome, count] for (kind, outcome), count in self.counts.items()]).encode()

    @classmethod
    def decode(cls, encoded: bytes) -> "Summary":
        """Read what `encode` wrote. Raises ValueError."""
        try:
            return cls(
                {(Kind(kind), Outcome(outcome)): int(count) for kind, outcome, count in list(json.loads(encoded))}
            )
        except TypeError as error:
            raise ValueError("not a summary") from error

    def _count(self, kind: Kind, outcome: Outcome) -> int:
        return self.counts.get((kind, outcome), 0)

    def _with(self, wanted: Outcome) -> int:
        return sum(count for (_, outcome), count in self.counts.items() if outcome is wanted)
