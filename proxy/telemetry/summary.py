"""Summary of a run: counts attempts and their outcomes for the two lines at its end."""

from collections.abc import Collection, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from proxy.telemetry.events import Count, Kind
from proxy.telemetry.masking import last_of, without_surrogates
from rules.verdicts import Outcome, Reason

# What a kind of decision is called in a sentence: one, several.
KIND_WORDS = {
    Kind.REQUEST_DECIDED: ("request", "requests"),
    Kind.CONNECTION_DECIDED: ("connection", "connections"),
    Kind.DNS_DECIDED: ("lookup", "lookups"),
    Kind.COMMAND_DECIDED: ("command", "commands"),
}
MOST_PLACES = 1000  # hosts that are told apart
MOST_SHOWN = 3
_WIDEST = 60  # columns
_LONGEST_PLACE = _WIDEST  # characters: the summary has to fit one packet (message.py), whatever was tried
OUTCOME_WORDS = {
    Outcome.PASSED: "allowed",
    Outcome.BLOCKED: "blocked",
    Outcome.WOULD_BLOCK: "only audited",
    Outcome.FAILED: "failed",
}
_ANSWERS = {  # what came of attempts that were held, by why they ended as they did
    "approved": {Reason.APPROVAL_GRANTED, Reason.UNRESOLVED, Reason.UPSTREAM_FAILED},  # looked up and dialled after it
    "refused": {Reason.APPROVAL_DENIED},
    "not answered in time": {Reason.APPROVAL_TIMEOUT},
}


class Places(NamedTuple):
    """The first hosts of some, as the task wrote them, and how many more; bounded, as a task can try any number."""

    first: tuple[str, ...] = ()
    more: Count = 0

    @classmethod
    def of(cls, places: Collection[str]) -> "Places":
        """Make it of at most MOST_PLACES hosts, each once."""
        first = tuple(without_surrogates(last_of(place, _LONGEST_PLACE)) for place in islice(places, MOST_SHOWN))
        return cls(first, len(places) - len(first))

    def describe(self) -> str:
        """Return them behind a space and in brackets, or nothing."""
        from proxy.telemetry.visible import fitted, visible  # only who prints it needs that

        shown = ", ".join(fitted(visible(place), _WIDEST) for place in self.first)
        if not self.more:
            return f" ({shown})" if shown else ""
        uncounted = len(self.first) + self.more >= MOST_PLACES
        return f" ({shown} and {self.more}{' or' if uncounted else ''} more)"


_NO_PLACES = Places()


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Attempts by kind and by what became of them in the end: what was let out and then cut or failed didn't pass.

    Lookups, connections and requests are attempts of their own: one `curl` of an inspected page makes all three.
    """

    counts: tuple[tuple[Kind, Outcome, Count], ...] = ()
    blocked_places: Places = _NO_PLACES
    failed_places: Places = _NO_PLACES
    leaks: Count = 0  # that were let out and told of; one that was stopped is a blocked request
    leaked_places: Places = _NO_PLACES
    tampers: Count = 0
    held: Mapping[Reason, Count] = {}  # attempts that people were asked about, by the answer
    given_up: Count = 0  # of those that nobody answered in time: whoever tried it left before
    flagged: Count = 0  # attempts that were let out and are to be looked at, as `exeat flagged` lists them
    blocked_for: tuple[Reason, ...] = ()  # why the first of `blocked_places` were blocked first
    calls: frozenset[str] = frozenset()  # system calls that were refused and recorded
    dropped: Count = 0  # records of the task's own telemetry that there was no room for

    @property
    def is_empty(self) -> bool:
        """Whether nothing was attempted."""
        return not any(count for *_, count in self.counts)

    def describe(self) -> str:
        """Return all of it in one line: `allowed 3 requests, 1 lookup; blocked 1 connection`."""
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
        """Return it as JSON, for the process that prints it."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, encoded: bytes) -> "Summary":
        """Read what `encode` wrote. Raises ValueError."""
        try:
            return msgspec.json.decode(encoded, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ValueError("not a summary") from error

    def _describe_answers(self) -> str:
        """Return what came of those that were held; all that no person said together."""
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
