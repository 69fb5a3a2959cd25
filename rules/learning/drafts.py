"""Drafts rules from recorded attempts: one for each destination and each set of methods with the same paths."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rules.attempt import METHOD_TOKEN, Protocol
from rules.learning.generalize import (
    GitDraft,
    GitObservation,
    Learned,
    generalize_paths,
    git_drafts,
    matches_learned,
    write_pattern,
)
from rules.loading.fields import make_slug
from rules.problems import join_first
from rules.values.addresses import Address, Opening, bracket_host, find_block, why_not_public
from rules.values.names import HOST, HostName, is_localhost
from rules.values.paths import readings
from rules.verdicts import STRICTEST_FIRST, Verdict

_LONGEST_ID: Final = 63
_BODILESS: Final = frozenset({"GET", "HEAD"})  # a rule without `body` covers them only without one
_MOST_CITED: Final = 3
_MOST_TASKS: Final = 1000  # listed by name; beyond that only counted


class Destination(NamedTuple):
    """Where something went."""

    target: HostName | Address
    port: int
    protocol: Protocol


@dataclass(slots=True)
class Evidence:
    """Evidence for a draft: how often, when (ns since 1970), by which tasks, and the strictest action that allowed it.

    `allowed_by`: the rules that allowed or flagged it. `approvals_from`: the rules under which people approved it.
    `unrecorded`: what its events lack and rules look at.
    """

    times: int = 0
    first: int = 0
    last: int = 0
    tasks: dict[str, None] = field(default_factory=dict)
    action: Verdict = Verdict.ALLOW
    allowed_by: dict[str, None] = field(default_factory=dict)
    approvals_from: dict[str, None] = field(default_factory=dict)
    unrecorded: dict[str, None] = field(default_factory=dict)

    def add(self, time: int, task: str, action: Verdict, rules: Iterable[str] = ()) -> None:
        """Count one."""
        asks, by = action is Verdict.ASK, dict.fromkeys(rules)
        self.take(Evidence(1, time, time, {task: None}, action, {} if asks else by, by if asks else {}))

    def take(self, other: "Evidence") -> None:
        """Count all of another."""
        self.first = min(self.first, other.first) if self.times else other.first
        self.last = max(self.last, other.last)
        self.times += other.times
        self.action = min(self.action, other.action, key=STRICTEST_FIRST.index)
        self.allowed_by.update(other.allowed_by)
        self.approvals_from.update(other.approvals_from)
        self.unrecorded.update(other.unrecorded)
        if len(self.tasks) < _MOST_TASKS:
            self.tasks.update(other.tasks)


class RequestKind(NamedTuple):
    """Kind of requests that gets a rule of its own. `body`: a GET or HEAD with a body."""

    method: str
    body: bool = False
    websocket: bool = False
    action: Verdict = Verdict.ALLOW

    @classmethod
    def of(cls, method: str, *, body: bool, websocket: bool, action: Verdict) -> "RequestKind":
        """Leave out what makes no difference to a rule."""
        return cls(method, body and method in _BODILESS, websocket, action)


@dataclass(slots=True)
class Observations:
    """Allowed attempts at one destination. `requests`: by kind and raw path; `unread`: spliced connections."""

    requests: dict[tuple[RequestKind, str], Evidence] = field(default_factory=dict)
    git: dict[GitObservation, Evidence] = field(default_factory=dict)
    unread: Evidence = field(default_factory=Evidence)
    connections: Evidence = field(default_factory=Evidence)  # inspected connections, or of unknown kind
    reading: Evidence = field(default_factory=Evidence)  # for a rule that allows reading anything there
    addresses: set[Address] = field(default_factory=set)  # that were dialled for the name
    records: Counter[str] = field(default_factory=Counter)  # types of lookups of the name that a rule has to list


class Draft(NamedTuple):
    """One rule. `methods` None: it is not about requests; `paths` None: it is about every path."""

    id: str
    place: Destination
    action: Verdict
    evidence: Evidence
    methods: tuple[str, ...] | None = None
    paths: tuple[Learned, ...] | None = None
    splice: bool = False
    resolves_to: tuple[Address, ...] = ()
    notes: tuple[str, ...] = ()  # for a comment; no text of a sandbox's
    body: bool = False
    websocket: bool = False
    git: GitDraft | None = None
    dns_types: tuple[str, ...] = ()


class Omission(NamedTuple):
    """What no rule was made for, and why. `what` may hold a sandbox's text."""

    what: str
    times: int
    why: str


class LearnedRules(NamedTuple):
    """What came of it."""

    drafts: tuple[Draft, ...]
    left_out: tuple[Omission, ...]


def learn(observations: "dict[Destination, Observations]", looks_secret: Callable[[str], bool]) -> LearnedRules:
    """Draft rules from observations; `looks_secret` says which texts must not be written to a file."""
    drafts: list[Draft] = []
    left_out: list[Omission] = []
    ids: set[str] = set()
    for place, there in sorted(observations.items(), key=lambda item: _order(item[0])):
        if looks_secret(str(place.target)):
            left_out.append(Omission(format_destination(place), _times(there), "the name looks like a credential"))
            continue
        closed: list[object] = [address for address in _asked_of(place, there) if not _can_open(address)]
        if isinstance(place.target, HostName) and is_localhost(
            place.target
        ):  # through a proxy, anything may be looked up
            closed.append(place.target)
        if closed:
            left_out.append(Omission(format_destination(place), _times(there), f"no rule can open {closed[0]}"))
            continue
        requests = [
            *_draft_requests(place, there, looks_secret, left_out),
            *_draft_git(place, there, looks_secret, left_out),
        ]
        found = requests or [*_draft_connections(place, there, left_out)]
        drafts += [_identified(draft, ids) for draft in _draft_lookups(place, there, found, left_out)]
    return LearnedRules(tuple(drafts), tuple(left_out))


def _order(place: Destination) -> tuple[object, ...]:
    return isinstance(place.target, HostName), str(place.target), place.port, place.protocol


def format_destination(place: Destination) -> str:
    """Write a place as an attempt names it."""
    return f"{place.protocol} {bracket_host(place.target)}:{place.port}"


def _draft_lookups(
    place: Destination, there: Observations, drafts: Iterable[Draft], left_out: list[Omission]
) -> Iterable[Draft]:
    """Add the record types that were answered for a name to the rules that allow it."""
    is_listed = False
    for draft in drafts:
        is_listed |= draft.action.allows
        yield draft._replace(dns_types=tuple(sorted(there.records))) if draft.action.allows else draft
    for record, times in there.records.items() if not is_listed else ():
        left_out.append(
            Omission(f"lookups of {record} of {place.target}", times, "no rule allows the name without an approval")
        )


def _draft_connections(place: Destination, there: Observations, left_out: list[Omission]) -> Iterable[Draft]:
    if there.connections.times:
        why = "no request on them was allowed, so no rule is needed"
        left_out.append(Omission(f"connections {format_destination(place)}", there.connections.times, why))
    if there.reading.times:
        addresses, notes = _opening(place, there)
        methods = tuple(sorted(_BODILESS))
        yield Draft("", place, Verdict.ALLOW, there.reading, methods, resolves_to=addresses, notes=notes)
    if there.unread.times:
        splice = place.protocol is Protocol.TLS
        addresses, notes = _opening(place, there)
        what = "any bytes may" if place.protocol is Protocol.UDP else "any bytes may, also TLS and HTTP"
        if splice:
            what = "the requests were not inspected, so the rule allows any"
        notes = (f"not inspected: {what}", *notes)
        notes = (*notes, *_approval_note(there.unread))
        yield Draft("", place, there.unread.action, there.unread, splice=splice, resolves_to=addresses, notes=notes)


def _draft_requests(
    place: Destination, there: Observations, looks_secret: Callable[[str], bool], left_out: list[Omission]
) -> Iterable[Draft]:
    """Group methods by the paths they go to: a rule for two methods allows both on all of its paths."""
    by_kind: dict[RequestKind, dict[str, Evidence]] = defaultdict(dict)
    for (kind, path), evidence in sorted(there.requests.items(), key=lambda item: item[0]):
        by_kind[kind][path] = evidence
    sharing: dict[tuple[frozenset[Learned], RequestKind], list[tuple[str, Evidence]]] = defaultdict(list)
    for kind, paths in by_kind.items():
        method = kind.method
        if not method or not METHOD_TOKEN.issuperset(method):
            times = sum(evidence.times for evidence in paths.values())
            left_out.append(Omission(f"{method} to {format_destination(place)}", times, "no rule can name the method"))
            continue
        patterns, evidence = _patterns(place, method, paths, looks_secret, left_out)
        if patterns:
            sharing[patterns, kind._replace(method="")].append((method, evidence))
    addresses, notes = _opening(place, there)
    if there.unread.times:
        notes = (f"{there.unread.times} connections were not inspected: their requests are not known", *notes)
    for (patterns, kind), methods in sharing.items():
        evidence = Evidence()
        for _, each in methods:
            evidence.take(each)
        yield Draft(
            "",
            place,
            kind.action,
            evidence,
            tuple(method for method, _ in methods),
            tuple(sorted(patterns, key=lambda pattern: write_pattern(pattern) or "")),
            resolves_to=addresses,
            notes=(*notes, *_approval_note(evidence), *_incomplete_note(evidence)),
            body=kind.body,
            websocket=kind.websocket,
        )


def _draft_git(
    place: Destination, there: Observations, looks_secret: Callable[[str], bool], left_out: list[Omission]
) -> Iterable[Draft]:
    """Draft a rule for each action and git operation: fetches, and each kind of ref change."""
    addresses, notes = _opening(place, there)
    for draft, action, observations in git_drafts(there.git, looks_secret):
        evidence = Evidence()
        for each in observations:
            evidence.take(there.git[each])
        if draft is None:
            what = "pushes" if observations[0].change is not None else "fetches"
            left_out.append(
                Omission(f"{what} to {format_destination(place)}", evidence.times, "no rule can name it as it was")
            )
            continue
        all_notes = (*notes, *_approval_note(evidence), *_incomplete_note(evidence))
        yield Draft("", place, action, evidence, resolves_to=addresses, notes=all_notes, git=draft)


def _approval_note(evidence: Evidence) -> Iterable[str]:
    """Note which rules' approval terms to copy, since the draft has none."""
    if evidence.action is Verdict.ASK:
        named = join_first(evidence.approvals_from, _MOST_CITED)
        yield f"people approved it: copy the `approval` terms of the rule that asked{f' ({named})' if named else ''}"


def _incomplete_note(evidence: Evidence) -> Iterable[str]:
    for untold in evidence.unrecorded:
        yield f"NOT RECORDED: {untold}"


def _patterns(
    place: Destination,
    method: str,
    paths: dict[str, Evidence],
    looks_secret: Callable[[str], bool],
    left_out: list[Omission],
) -> tuple[frozenset[Learned], Evidence]:
    """Find patterns for the paths of one method; paths without a pattern are reported as omissions."""
    ways = {path: readings(path) for path in paths}
    patterns = generalize_paths({way for found in ways.values() for way in found})
    texts = {pattern: write_pattern(pattern) for pattern in patterns}
    good = {pattern for pattern, text in texts.items() if text is not None and not looks_secret(_slug_of(pattern))}
    learned, total = set[Learned](), Evidence()
    by_length: dict[int, list[Learned]] = defaultdict(list)
    for pattern in good:
        by_length[len(pattern)].append(pattern)
    for path, found in ways.items():
        candidates = [
            next((p for p in _candidates(way, good, by_length) if matches_learned(p, way)), None) for way in found
        ]
        if found and None not in candidates:
            learned |= {pattern for pattern in candidates if pattern is not None}
            total.take(paths[path])
        else:
            secret = looks_secret(path) or any(looks_secret(segment) for way in found for segment in way)
            why = "the path looks like it holds a credential" if secret else "no rule can name the path"
            what = f"{method} to {format_destination(place)}" + ("" if secret else path)
            left_out.append(Omission(what, paths[path].times, why))
    return frozenset(learned), total


def _candidates(way: tuple[str, ...], good: set[Learned], by_length: dict[int, list[Learned]]) -> Iterable[Learned]:
    return (way,) if way in good else by_length[len(way)]


def _slug_of(pattern: Learned) -> str:
    return "/" + "/".join(part if isinstance(part, str) else "*" for part in pattern)


def _asked_of(place: Destination, there: Observations) -> set[Address]:
    """List the addresses that a rule would have to open; those of the host's own name need none."""
    if not isinstance(place.target, HostName):
        return {place.target}
    return set() if place.target == HOST else there.addresses


def _can_open(address: Address) -> bool:
    block = find_block(address)
    return block is None or block.opening is not Opening.NEVER


def _opening(place: Destination, there: Observations) -> tuple[tuple[Address, ...], tuple[str, ...]]:
    """Return the addresses that a rule must list because one is not public, with a note for each such."""
    if not isinstance(place.target, HostName):
        kind = why_not_public(place.target)
        return (), (f"NOT A PUBLIC ADDRESS: {kind}",) if kind else ()
    if place.target == HOST:
        return (), ("A SERVICE OF THIS MACHINE ITSELF",)
    kinds = {address: why_not_public(address) for address in sorted(there.addresses, key=lambda a: (a.version, int(a)))}
    if not any(kinds.values()):
        return (), ()
    closed = [f"NOT A PUBLIC ADDRESS: it resolved to {address}, {kind}" for address, kind in kinds.items() if kind]
    return tuple(kinds), tuple(closed)


def _times(there: Observations) -> int:
    every = (there.unread, there.connections, there.reading, *there.requests.values(), *there.git.values())
    return sum(evidence.times for evidence in every)


def _identified(draft: Draft, ids: set[str]) -> Draft:
    """Give a rule a unique id that says what it is for."""
    place = draft.place
    words = [str(place.target).replace("*", "")]
    if (place.protocol, place.port) != (Protocol.TLS, 443):
        words += [str(place.port), place.protocol.value]
    words += [method.lower() for method in draft.methods or ()]
    words += ["websocket"] * draft.websocket + ["body"] * draft.body
    if draft.git is not None:
        words += ["git", "fetch" if draft.git.change is None else draft.git.change.value]
    base = make_slug("-".join(words))
    while "--" in base:
        base = base.replace("--", "-")
    number, ident = 1, base
    while ident in ids:
        number += 1
        ident = f"{base[: _LONGEST_ID - len(str(number)) - 1].rstrip('-')}-{number}"
    ids.add(ident)
    return draft._replace(id=ident)
