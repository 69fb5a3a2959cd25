"""Gathers allowed attempts from a journal, for `rules.learning` to make rules of.

Only allowed attempts, by a rule or by audit mode, are evidence; attempts that a check blocked never are. Allowed
attempts that can't be evidence (an invalid name, a lookup without a connection) are counted and reported.
"""

import re
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from proxy.telemetry.events import Kind
from proxy.telemetry.masking import MASK, masked
from proxy.telemetry.replay.past_attempts import (
    RESOLVED_TYPES,
    UNRECORDED_REFS,
    PastAttempt,
    RuleOutcome,
    rebuild_attempt,
)
from rules.attempt import GitService, Protocol
from rules.learning.drafts import (
    Destination,
    Evidence,
    LearnedRules,
    Observations,
    Omission,
    RequestKind,
    format_destination,
    learn,
)
from rules.learning.generalize import GitObservation
from rules.loading.fields import RECORD_TYPES
from rules.ports import UNSEEN, Ports, never_leaves
from rules.values.addresses import parse_address
from rules.values.names import HOST, HostName, InvalidNameError
from rules.verdicts import Mode, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.telemetry.events import Event
    from rules.values.addresses import Address

_RUN: Final = re.compile(r"[A-Za-z0-9_-]{24,}+")
_UNRECORDED_PUSH: Final = "pushes whose refs the journal doesn't record: write a rule with `git` and its `push`"
UNRECORDED_ADDRESS: Final = "which address the name had; a non-public one must be listed under `resolves_to`"
_ACTIONS: Final = {RuleOutcome.FLAGGED: Verdict.FLAG, RuleOutcome.ASKED: Verdict.ASK}
_HEX: Final = re.compile(r"[0-9a-fA-F-]++")


class Learner:
    """Collects allowed attempts from events."""

    def __init__(self) -> None:
        self.attempts = 0  # attempts that are evidence
        self.incomplete = 0  # of those, without all the fields that rules inspect
        self.sources: dict[str, None] = {}  # rule files that were in force, in order of their events
        self.not_public: Counter[HostName | Address] = Counter()  # targets that audit mode blocked for their address
        self._seen: dict[Destination, Observations] = {}
        self._lookups: Counter[HostName] = Counter()
        self._records: dict[HostName, Counter[str]] = {}  # of record types that a rule must list
        self._problems: Counter[str] = Counter()
        self._unfinished_pushes: Counter[tuple[Destination, str]] = Counter()  # pushes, by repository

    def take(self, event: "Event") -> None:
        """Process one event."""
        if event.kind is Kind.RULES_LOADED:
            self.sources.update(dict.fromkeys(event.sources))
            return
        if event.mode is Mode.AUDIT and event.reason is Reason.NON_PUBLIC_ADDRESS and event.outcome is Outcome.BLOCKED:
            self._count_not_public(event)
        attempt = rebuild_attempt(event, None)
        if attempt is None or event.outcome not in {Outcome.PASSED, Outcome.WOULD_BLOCK, Outcome.FAILED}:
            return
        if event.verdict is Verdict.ASK:
            return  # it allowed nothing by itself: each held request has its own event
        if event.outcome is Outcome.FAILED:
            self._problems[f"let out, and then it failed ({event.reason})"] += 1
        elif attempt.problem:
            self._problems[attempt.problem] += 1
        elif attempt.lookup is not None:
            self._count_lookup(attempt.lookup, event)
        else:
            self._add_attempt(attempt)

    def _count_lookup(self, name: HostName, event: "Event") -> None:
        record = "A" if event.dns is None else event.dns.type
        if record in RESOLVED_TYPES:
            self._lookups[name] += 1
        elif record in RECORD_TYPES:
            self._records.setdefault(name, Counter())[record] += 1
        else:
            self._problems["lookups of a type that no rule can allow"] += 1

    def suggest(self, attempt: PastAttempt) -> None:
        """Treat a blocked attempt as if it had been allowed.

        A lookup, or a connection without known requests, counts as reading of any path.
        """
        if attempt.lookup is not None:
            self._add_reading(Destination(attempt.lookup, 443, Protocol.TLS), attempt)
        elif attempt.attempt is not None and attempt.attempt.request is None:
            place = Destination(attempt.attempt.target, attempt.attempt.port, attempt.attempt.protocol)
            if place.protocol in UNSEEN:
                self._add_attempt(attempt)
            else:
                self._add_reading(place, attempt)
        elif attempt.attempt is not None:
            self._add_attempt(attempt)

    def _add_reading(self, place: Destination, attempt: PastAttempt) -> None:
        observations = self._seen.setdefault(place, Observations())
        if attempt.address is not None:
            observations.addresses.add(attempt.address)
        observations.reading.add(attempt.event.time, attempt.event.task.name or attempt.event.task.id, Verdict.ALLOW)
        self.attempts += 1

    def result(self) -> LearnedRules:
        """Return the learned rules."""
        for place, observations in self._seen.items():
            if isinstance(place.target, HostName):
                observations.records = self._records.get(place.target, Counter())
        drafted = learn(self._seen, looks_secret)
        named = {draft.place.target for draft in drafted.drafts}
        seen = self._lookups + Counter({name: records.total() for name, records in self._records.items()})
        lookups_only = [
            Omission(f"lookups of {name}", times, "the name was only looked up: nothing was sent to it")
            for name, times in sorted(seen.items())
            if name not in named
        ]
        unfinished = [
            Omission(f"pushes to {format_destination(place)}/{repo}", times, "only started: the refs were never sent")
            for (place, repo), times in self._unfinished_pushes.items()
            if not any(seen.repo == repo and seen.change is not None for seen in self._seen[place].git)
        ]
        problems = [Omission("attempts", times, why) for why, times in sorted(self._problems.items())]
        return drafted._replace(left_out=(*drafted.left_out, *unfinished, *lookups_only, *problems))

    def _count_not_public(self, event: "Event") -> None:
        """Count a target that was blocked for its address; its lookups don't count."""
        if event.kind is Kind.DNS_DECIDED or event.destination is None:
            return
        name, address = event.destination.name, event.destination.address
        with suppress(InvalidNameError):
            target = parse_address(address) if name is None and address is not None else HostName.parse(name or "")
            if target is not None:
                self.not_public[target] += 1

    def _add_attempt(self, past: PastAttempt) -> None:
        attempt, event = past.attempt, past.event
        assert attempt is not None
        if never_leaves(Ports(attempt.port, attempt.port, attempt.protocol)) is not None:
            self._problems[f"{attempt.port}/{attempt.protocol}, which no rule can allow"] += 1
            return
        observations = self._seen.setdefault(
            Destination(attempt.target, attempt.port, attempt.protocol), Observations()
        )
        if past.address is not None:
            observations.addresses.add(past.address)
        action = _ACTIONS.get(past.fate, Verdict.ALLOW)
        rules = () if past.fate is RuleOutcome.AUDITED else event.rules
        unrecorded = [each for each in past.unrecorded if each != UNRECORDED_REFS]
        if attempt.request is not None and _lacks_address(past):
            unrecorded.append(UNRECORDED_ADDRESS)
        found = list(self._evidence(past, observations, action))
        for evidence in found:
            evidence.add(event.time, event.task.name or event.task.id, action, rules)
            evidence.unrecorded.update(dict.fromkeys(unrecorded))
        self.attempts += bool(found)
        self.incomplete += bool(found and unrecorded)

    def _evidence(self, past: PastAttempt, observations: Observations, action: Verdict) -> "Iterator[Evidence]":
        """Yield the evidence of an attempt; each ref of a push is separate."""
        attempt, event = past.attempt, past.event
        assert attempt is not None
        request = attempt.request
        if request is None:
            if attempt.protocol in UNSEEN or past.address is not None:
                yield observations.unread  # only uninspected connections record the dialled address with the name
            elif event.kind is Kind.CONNECTION_DECIDED:
                yield observations.connections
            return
        if request.git is None and UNRECORDED_REFS not in past.unrecorded:
            kind = RequestKind.of(request.method, body=request.body, websocket=request.websocket, action=action)
            yield observations.requests.setdefault((kind, request.path.partition("?")[0]), Evidence())
            return
        for git in past.pushed:
            if git.service is GitService.FETCH or git.ref is not None:
                yield observations.git.setdefault(GitObservation(git.repo, git.ref, git.change, action), Evidence())
            elif UNRECORDED_REFS not in past.unrecorded:
                self._unfinished_pushes[Destination(attempt.target, attempt.port, attempt.protocol), git.repo] += 1
        if UNRECORDED_REFS in past.unrecorded:
            self._problems[_UNRECORDED_PUSH] += 1


def _lacks_address(past: PastAttempt) -> bool:
    """Whether the gate dialled a name and the event lacks the address."""
    attempt, destination = past.attempt, past.event.destination
    assert attempt is not None
    if not isinstance(attempt.target, HostName) or attempt.target == HOST or past.address is not None:
        return False
    return destination is None or destination.via is None


def looks_secret(text: str) -> bool:
    """Whether a text may contain a credential. False alarms are better than a written credential."""
    return MASK in text or without_secrets(text) != text


def without_secrets(text: str) -> str:
    """Return a text with likely credentials masked."""
    return _RUN.sub(_mask_run, masked((text,))[0])


def _mask_run(match: "re.Match[str]") -> str:
    """Mask a long mix of upper case, lower case and digits, except hexadecimal digests and ids."""
    run = match[0]
    mixed = any(c.islower() for c in run) and any(c.isupper() for c in run) and sum(c.isdigit() for c in run) > 1
    return MASK if mixed and not _HEX.fullmatch(run) else run
