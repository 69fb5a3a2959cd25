"""What a journal tells was let out, gathered for `rules.learning` to make rules of.

Only what passed, by a rule or by audit mode alone, is evidence: what a check refused never is. What passed and can't be
evidence (a name that can't be read, a lookup that nothing followed) is counted and told.
"""

import re
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from proxy.telemetry.events import MASK, Kind
from proxy.telemetry.masking import masked
from proxy.telemetry.recorded import Fate, Recorded, recorded
from rules.addresses import parse_address
from rules.learning.drafts import Drafted, LeftOut, Place, Seen, learn
from rules.names import HostName, InvalidName
from rules.ports import UNSEEN, Ports, never_leaves
from rules.verdicts import Mode, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from proxy.telemetry.events import Event
    from rules.addresses import Address

_RUN: Final = re.compile(r"[A-Za-z0-9_-]{24,}+")
_HEX: Final = re.compile(r"[0-9a-fA-F-]++")


class Learner:
    """Gathers what was let out."""

    def __init__(self) -> None:
        self.attempts = 0  # that are evidence
        self.sources: dict[str, None] = {}  # files of the rules that were in force, in the order they were told of
        self.not_public: Counter[HostName | Address] = Counter()  # what audit mode didn't let out for its address
        self._seen: dict[Place, Seen] = {}
        self._lookups: Counter[HostName] = Counter()
        self._problems: Counter[str] = Counter()

    def take(self, event: "Event") -> None:
        """Take one event into account."""
        if event.kind is Kind.RULES_LOADED:
            self.sources.update(dict.fromkeys(event.sources))
            return
        if event.mode is Mode.AUDIT and event.reason is Reason.NON_PUBLIC_ADDRESS and event.outcome is Outcome.BLOCKED:
            self._refused(event)
        attempt = recorded(event, None)
        if attempt is None or event.outcome not in {Outcome.PASSED, Outcome.WOULD_BLOCK, Outcome.FAILED}:
            return
        if event.verdict is Verdict.ASK:
            return  # nothing was let out by that: what people were asked about on it is told by itself
        if event.outcome is Outcome.FAILED:
            self._problems[f"let out, and then it failed ({event.reason})"] += 1
        elif attempt.problem:
            self._problems[attempt.problem] += 1
        elif attempt.lookup is not None:
            self._lookups[attempt.lookup] += 1
        else:
            self._passed(attempt)

    def result(self) -> Drafted:
        """Make rules of it all."""
        drafted = learn(self._seen, looks_secret)
        named = {draft.place.target for draft in drafted.drafts}
        only = [
            LeftOut(f"lookups of {name}", times, "nothing was let out to the name, only looked up")
            for name, times in sorted(self._lookups.items())
            if name not in named
        ]
        problems = [LeftOut("attempts", times, why) for why, times in sorted(self._problems.items())]
        return drafted._replace(left_out=(*drafted.left_out, *only, *problems))

    def _refused(self, event: "Event") -> None:
        """Take note of a target; of its lookups nothing more is to be said."""
        if event.kind is Kind.DNS_DECIDED or event.destination is None:
            return
        name, address = event.destination.name, event.destination.address
        with suppress(InvalidName):
            target = parse_address(address) if name is None and address is not None else HostName.parse(name or "")
            if target is not None:
                self.not_public[target] += 1

    def _passed(self, recorded: Recorded) -> None:
        attempt, event = recorded.attempt, recorded.event
        assert attempt is not None
        if never_leaves(Ports(attempt.port, attempt.port, attempt.protocol)) is not None:
            self._problems[f"{attempt.port}/{attempt.protocol}, which no rule lets out"] += 1
            return
        there = self._seen.setdefault(Place(attempt.target, attempt.port, attempt.protocol), Seen())
        if recorded.address is not None:
            there.addresses.add(recorded.address)
        evidence = there.connections
        if attempt.request is not None:
            key = attempt.request.method, attempt.request.path
            evidence = there.requests.setdefault(key, type(evidence)())
        elif attempt.protocol in UNSEEN or recorded.address is not None:
            evidence = there.unread  # only what passes unread has its dialled address told beside the name
        elif event.kind is not Kind.CONNECTION_DECIDED:
            return
        looked_at = recorded.fate in {Fate.FLAGGED, Fate.ASKED}  # what somebody approved is put up for review at least
        evidence.add(event.time, event.origin.name or event.origin.task, flagged=looked_at)
        self.attempts += 1


def looks_secret(text: str) -> bool:
    """Whether a text looks as if it held a credential: better one too many left out than one written down."""
    return MASK in text or without_secrets(text) != text


def without_secrets(text: str) -> str:
    """Return a text with what looks like a credential taken out."""
    return _RUN.sub(_run, masked((text,))[0])


def _run(match: "re.Match[str]") -> str:
    """Mask a long run of letters of both cases and digits; not a digest or an id in hexadecimal."""
    run = match[0]
    mixed = any(c.islower() for c in run) and any(c.isupper() for c in run) and sum(c.isdigit() for c in run) > 1
    return MASK if mixed and not _HEX.fullmatch(run) else run
