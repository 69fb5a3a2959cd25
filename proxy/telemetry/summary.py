"""Summary of a run: counts attempts and their outcomes for the two lines at its end."""

from collections.abc import Collection, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from proxy.telemetry.events import Count, Kind
from proxy.telemetry.masking import last_of, without_surrogates
from rules.verdicts import Outcome, Reason

# Singular and plural of each kind of decision.
KIND_WORDS = {
    Kind.REQUEST_DECIDED: ("request", "requests"),
    Kind.CONNECTION_DECIDED: ("connection", "connections"),
    Kind.DNS_DECIDED: ("lookup", "lookups"),
    Kind.COMMAND_DECIDED: ("command", "commands"),
}
MOST_PLACES = 1000  # hosts counted separately
MOST_SHOWN = 3
_WIDEST = 60  # columns
_LONGEST_PLACE = _WIDEST  # characters: the summary must fit one packet (message.py)
OUTCOME_WORDS = {
    Outcome.PASSED: "allowed",
    Outcome.BLOCKED: "blocked",
    Outcome.WOULD_BLOCK: "only audited",
    Outcome.FAILED: "failed",
}
_ANSWERS = {  # results of held attempts, by the reasons of their decisions
    "approved": {Reason.APPROVAL_GRANTED, Reason.UNRESOLVED, Reason.UPSTREAM_FAILED},  # failed after the approval
    "refused": {Reason.APPROVAL_DENIED},
    "not answered in time": {Reason.APPROVAL_TIMEOUT},
}


class Places(NamedTuple):
    """The first hosts, as the task wrote them, and the number of others. Bounded: a task can try any number."""

    first: tuple[str, ...] = ()
    more: Count = 0

    @classmethod
    def of(cls, places: Collection[str]) -> "Places":
        """Return the summary of at most MOST_PLACES distinct hosts."""
        first = tuple(without_surrogates(last_of(place, _LONGEST_PLACE)) for place in islice(places, MOST_SHOWN))
        return cls(first, len(places) - len(first))

    def describe(self) -> str:
        """Return the hosts in parentheses after a space, or an empty text."""
        from proxy.telemetry.visible import fitted, visible  # only the process that prints needs it

        shown = ", ".join(fitted(visible(place), _WIDEST) for place in self.first)
        if not self.more:
            return f" ({shown})" if shown else ""
        uncounted = len(self.first) + self.more >= MOST_PLACES
        return f" ({shown} and {self.more}{' or' if uncounted else ''} more)"


_NO_PLACES = Places()


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Attempts by kind and final outcome: an allowed attempt that was later cut or failed does not count as allowed.

    Lookups, connections and requests are separate attempts: one `curl` of an inspected page makes all three.
    """

    counts: tuple[tuple[Kind, Outcome, Count], ...] = ()
    blocked_places: Places = _NO_PLACES
    failed_places: Places = _NO_PLACES
    leaks: Count = 0  # recorded and not stopped; a stopped one counts as a blocked request
    leaked_places: Places = _NO_PLACES
    tampers: Count = 0
    held: Mapping[Reason, Count] = {}  # held attempts, by the reason of the decision
    given_up: Count = 0  # held attempts whose client left before the answer
    flagged: Count = 0  # allowed attempts that `exeat flagged` lists for review
    blocked_for: tuple[Reason, ...] = ()  # first reason of each of the first `blocked_places`
    calls: frozenset[str] = frozenset()  # denied system calls that were recorded
    dropped: Count = 0  # records of the task's own telemetry beyond its quota

    @property
    def is_empty(self) -> bool:
        """Whether nothing was attempted."""
        return not any(count for *_, count in self.counts)

    def describe(self) -> str:
        """Return one line: `allowed 3 requests, 1 lookup; blocked 1 connection`."""
        parts = []
        for outcome, word in OUTCOME_WORDS.items():
            things = [
                f"{count} {names[count != 1]}"
                for kind, names in KIND_WORDS.items()
                if (count := self._count(kind, outcome))
            ]
            if things:
                parts.append(f"{word} {', '.join(things)}{self._places(outcome).describe()}")
        if self.held:
            parts.append(f"{sum(self.held.values())} held: {self._describe_answers()}")
        if self.flagged:
            parts.append(f"{self.flagged} flagged (`exeat flagged`)")
        if self.leaks:
            parts.append(f"flagged {_with_plural(self.leaks, 'leak')}{self.leaked_places.describe()}")
        if self.tampers:
            parts.append(_with_plural(self.tampers, "misused placeholder"))
        return "; ".join(parts) or "it attempted nothing on the network"

    def encode(self) -> bytes:
        """Encode as JSON, for the process that prints the summary."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, encoded: bytes) -> "Summary":
        """Decode the result of `encode`. Raises ValueError."""
        try:
            return msgspec.json.decode(encoded, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ValueError("not a summary") from error

    def _describe_answers(self) -> str:
        """Return the results of held attempts in words; those without an answer are one group."""
        counts = {word: sum(self.held.get(one, 0) for one in reasons) for word, reasons in _ANSWERS.items()}
        counts["not answered in time"] -= self.given_up
        counts["given up"] = self.given_up
        counts["ended otherwise"] = sum(self.held.values()) - sum(counts.values())
        return ", ".join(f"{count} {word}" for word, count in counts.items() if count)

    def _places(self, outcome: Outcome) -> Places:
        return {Outcome.BLOCKED: self.blocked_places, Outcome.FAILED: self.failed_places}.get(outcome, _NO_PLACES)

    def _count(self, kind: Kind, outcome: Outcome) -> int:
        return sum(count for one, became, count in self.counts if one is kind and became is outcome)


def _with_plural(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"
