"""Plan for one target, port and protocol: the rules' answers, computed once and looked up afterwards.

A plan takes the rules whose names cover the target (candidates) and keeps those that cover the port. Where none of them
looks at requests there is one answer for everything. Otherwise each request is looked up in a trie of the rules' paths,
and the result is cached for each combination of the other conditions (`rules.matching.requests`).
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import GitRequest, GitService, Protocol, RefChange, Request
from rules.matching.precedence import Finding, Match, strongest_match, subtract_exemption, weakest_match, weigh
from rules.matching.requests import Condition, fold_all, git_repository_readings, is_git_path, is_push
from rules.matching.sample_requests import exempted_requests, longest_path, pushed_refs, sample_requests
from rules.ports import UNSEEN, ports_could_cover, ports_cover
from rules.rule import Exemption, Rule
from rules.values.globs import MANY, Part, Trie, fold_pattern
from rules.values.paths import Reading, cut_readings
from rules.verdicts import Reason, Verdict

if TYPE_CHECKING:
    from rules.decision import Decision

_MOST_FINDINGS: Final = 1024  # cached combinations of rules per plan: a hostile task can send many paths
_MOST_EXEMPTED: Final = 2000  # requests tried for exemptions; a connection that needs more is denied
PASSES: Final = 3  # what `Leniency` gives at least to what goes out: judge.py
_BLAMES: Final = {
    "http.max_url": Reason.URL_TOO_LONG,
    "http.body": Reason.BODY_NOT_ALLOWED,
    "credential": Reason.CREDENTIAL_MISMATCH,
}

type Leniency = Callable[[Finding], int]
type _Gits = tuple[tuple[int, Match], ...]  # which of what is about git matches, and how
type _Answer = Callable[["_FiledCondition"], Match]


class Candidate(NamedTuple):
    """A rule whose target covers the attempt's, with those of its exemptions that do too."""

    rule: Rule
    exemptions: tuple[Exemption, ...] = ()


class Hint(NamedTuple):
    """Hint in a block message: a rule that allows, and the field that did not match."""

    rule: str
    field: str
    wanted: str


class _FiledCondition(NamedTuple):
    """What a rule or an exemption asks of requests, filed under its paths. `cap`: it matches so far and no further."""

    rule: int  # index in the plan's rules
    condition: Condition
    exempts: bool
    cap: Match


class Plan:
    """The answer for one target, port and protocol; or, where a rule looks at requests, the way to it.

    `decisions` and `connection_decision` are caches of the policy, stored here so that they end with the plan.
    """

    __slots__ = (
        "_address_asks",
        "_always",
        "_asking",
        "_asking_loosely",
        "_capped",
        "_closed",
        "_conditional",
        "_exempts_paths",
        "_findings",
        "_git_cache",
        "_gits",
        "_has_capitals",
        "_has_details",
        "_lengths",
        "_loose",
        "_pathless",
        "_paths",
        "_refs",
        "_repos",
        "connection_decision",
        "decisions",
        "deferred",
        "expired",
        "granted",
        "missed",
        "needs_length",
        "not_public",
        "opened",
        "own",
        "possible",
        "rules",
    )  # fmt: skip

    def __init__(
        self,
        candidates: Sequence[Candidate],
        port: int,
        protocol: Protocol,
        *,
        not_public: bool = False,
        resolved: bool = False,
        expired: Collection[Rule] = (),
        granted: Collection[Rule] = (),
        closed: Collection[Rule] = (),
    ) -> None:
        self.not_public = not_public  # the target is an address that is not public
        self.own = not_public and not resolved  # it is one of exeat's own names
        self.opened = any(candidate.rule.allows for candidate in candidates)  # on some port at least; no asks
        self.expired = expired  # rules whose `until` has passed
        self.granted = granted  # asks that are, for the attempts that this is about
        self._closed = set(closed)  # asks that allow nothing here, granted or not
        self.rules: list[Rule] = []  # that cover port and protocol, most specific first
        self.possible: list[Rule] = []  # rules that could match uninspected bytes: precedence.py
        self.deferred: list[Rule] = []  # denies and asks of certain addresses, decided once the address is known
        self._address_asks: set[Rule] = set()  # asks about certain addresses: count where no other rule allows the name
        self.missed: tuple[Rule, str] | None = None  # the first rule that allows but not here, and the field
        self._always: set[int] = set()  # indices of `rules` that match unless exempted
        self._capped: set[int] = set()  # indices of `rules` that match possibly at most
        self._conditional: set[int] = set()  # indices of `rules` that a request decides about
        self._asking: list[list[Condition]] = []  # by slot of `_paths`: conditions with details
        self._exempts_paths = False  # whether some paths are exempt from a deny or ask
        self._pathless = False  # whether a git push makes a difference to what has no paths
        self._lengths: list[int] = []  # URL lengths that some condition distinguishes
        self._paths: Trie[_FiledCondition] = Trie()
        self._loose: Trie[_FiledCondition] = Trie()  # paths of denies, asks and flags: any case, cut or not
        self._has_capitals = False  # whether it takes more to match one of them than a path in another case
        self._gits: list[_FiledCondition] = []  # conditions about git alone
        self._repos: Trie[int] = Trie()  # indices of `_gits`
        self._git_cache: dict[GitRequest, _Gits] = {}
        self._refs: tuple[tuple[str, RefChange], ...] | None = None  # that stand for all that could be pushed
        self._findings: dict[tuple[object, ...], Finding] = {}  # by what `_key` distinguishes of requests
        self.decisions: dict[Finding, tuple[Decision, Hint | None]] = {}
        self.connection_decision: tuple[Decision, Hint | None] | None = None
        for candidate in candidates:
            if not resolved and any(exemption.resolves_to is not None for exemption in candidate.exemptions):
                # An exemption of addresses doesn't apply yet; a deny or ask waits until they are known.
                exemptions = tuple(e for e in candidate.exemptions if e.resolves_to is None)
                candidate = Candidate(candidate.rule, exemptions)  # noqa: PLW2901
            rule = candidate.rule
            waits = rule.needs_address and not resolved and rule not in granted
            if waits and rule.asks_before_lookup and rule not in expired:
                self._address_asks.add(rule)
            elif waits:
                self.deferred.append(rule)
                continue
            if protocol in UNSEEN:
                self._add_uninspected(candidate, port, protocol)
            else:
                self._add_inspected(candidate, port, protocol)
        self._asking, self._asking_loosely = (
            [[f.condition for f in filed if f.condition.has_details] for filed in every]
            for every in (self._paths.values, self._loose.values)
        )
        self._has_details = any(self._asking)
        self._lengths = sorted({f.condition.longest or 0 for filed in self._paths.values for f in filed} - {0})
        self.needs_length = bool(self._lengths)  # whether it matters how long a request's URL is

    @property
    def looks_at_requests(self) -> bool:
        """Whether the decision depends on the request and not on the connection alone."""
        return bool(self._conditional) or any(rule.looks_at_requests for rule in self.deferred)

    def _add_uninspected(self, candidate: Candidate, port: int, spoken: Protocol) -> None:
        """Sort in a rule for raw TCP or UDP: conditions on requests can't be checked there, so they only deny."""
        rule = candidate.rule
        certain = not rule.has_request_conditions and ports_cover(rule.ports, port, spoken)
        if (
            rule.action is not Verdict.DENY
            and certain
            and not any(ports_could_cover(e.ports, port, spoken) for e in candidate.exemptions)
        ):
            self._add(rule, always=True)
        elif rule.action is Verdict.ALLOW or not ports_could_cover(rule.ports, port, spoken):
            self._miss(rule, "except" if certain else "ports")
        elif not any(e.is_certain and ports_cover(e.ports, port, spoken) for e in candidate.exemptions):
            self.possible.append(rule)

    def _add_inspected(self, candidate: Candidate, port: int, protocol: Protocol) -> None:
        """Sort in a rule for TLS or HTTP: its conditions on requests are indexed for lookup."""
        rule = candidate.rule
        exemptions = [exemption for exemption in candidate.exemptions if ports_cover(exemption.ports, port, protocol)]
        if not ports_cover(rule.ports, port, protocol):
            self._miss(rule, "ports")
            return
        if any(exemption.is_certain for exemption in exemptions):
            self._miss(rule, "except")
            return
        index = self._add(rule, always=not rule.has_request_conditions)
        if rule.has_request_conditions:
            self._index_condition(_FiledCondition(index, Condition.of_rule(rule), exempts=False, cap=Match.YES))
        for exemption in exemptions:
            # An exemption that depends on a later taint matches possibly at most.
            cap = Match.PERHAPS if exemption.when_tainted else Match.YES
            self._index_condition(
                _FiledCondition(index, Condition.of_exemption(rule, exemption), exempts=True, cap=cap)
            )

    def _add(self, rule: Rule, *, always: bool) -> int:
        index = len(self.rules)
        self.rules.append(rule)
        if always:
            self._always.add(index)
        if rule.when_tainted:
            self._closed.add(rule)  # taint alone never allows anything
        if rule.allows and (rule.when_tainted or rule in self.expired):
            self._capped.add(index)
        return index

    def _index_condition(self, filed: _FiledCondition) -> None:
        self._conditional.add(filed.rule)
        http, git = filed.condition.http, filed.condition.git
        if git is not None and http is None and filed.condition.credential is None:
            for repo in git.repos:
                self._repos.file(repo.folded, len(self._gits))
            self._gits.append(filed)
            return
        self._exempts_paths |= http is not None and http.paths is not None and filed.condition.spares
        self._pathless |= http is not None and http.paths is None and filed.condition.strict
        patterns: Iterable[tuple[Part, ...]] = ((MANY,),)
        if http is not None and http.paths is not None:
            patterns = (path.parts for path in http.paths)
        for parts in patterns:
            self._paths.file(parts, filed)
            if filed.condition.folds and parts != (MANY,):
                loose = fold_pattern(parts)
                self._has_capitals |= loose != parts
                self._loose.file(loose, filed)

    def _miss(self, rule: Rule, field: str) -> None:
        if self.missed is None and rule.allows and rule not in self.expired:
            self.missed = rule, field

    def request(self, request: Request, reading: Reading, length: int, leniency: Leniency) -> Finding:
        """Let the strictest rule win that matches a request, by one reading of its path.

        `length` is that of its URL. The start of a push, which names no ref yet, is allowed if any push could be.
        """
        git = request.git
        if git is not None and git.ref is None and git.service is not GitService.FETCH:
            if self._refs is None:
                self._refs = pushed_refs(self.rules)
            pushes = (request._replace(git=git._replace(ref=ref, change=change)) for ref, change in self._refs)
            return max((self.request(push, reading, length, leniency) for push in pushes), key=leniency)
        if not self._conditional:
            return self._find_or_weigh((), (), _answer_nothing, leniency)
        slots = tuple(self._paths.find(reading))
        cut = cut_readings(reading) if self._exempts_paths else ()
        cut_slots = tuple([tuple(self._paths.find(way)) for way in cut or ()])
        loose = self._find_loosely(reading) if self._loose.values else ()
        details = self._match_details(request, reading, slots, loose) if self._has_details else ()
        push = self._pathless and is_push(request, reading)
        length_range = bisect_left(self._lengths, length) if self._lengths else 0
        gits = self._match_git(request, reading) if self._gits else ()
        key = (
            request.method,
            slots,
            cut_slots,
            loose,
            request.body,
            request.websocket,
            push,
            length_range,
            details,
            gits,
        )
        finding = self._findings.get(key)
        if finding is None:

            def answer(filed: _FiledCondition) -> Match:
                return filed.condition.match(request, reading, length)

            conditions = [*self._conditions_at(slots, loose), *(self._gits[number] for number, _ in gits)]
            finding = self._find_or_weigh(key, conditions, answer, leniency)
            if finding.verdict is None and not finding.expired:
                finding = self._findings[key] = finding._replace(
                    blame=self._single_failure(conditions, request, reading, length)
                )
        return finding

    def _find_loosely(self, reading: Reading) -> tuple[int, ...]:
        """Find denies, asks and flags that match a path in another case or cut short; empty if the path is plain."""
        segments = fold_all(reading)
        found = tuple(self._loose.find(segments)) if self._has_capitals or segments != reading else ()
        cut = cut_readings(reading)
        return tuple(sorted({*found, *chain(*(self._loose.find(fold_all(way)) for way in cut))})) if cut else found

    def _match_details(
        self, request: Request, reading: Reading, slots: Iterable[int], loose: Iterable[int]
    ) -> tuple[tuple[Match, ...], ...]:
        asking = chain(*(self._asking[slot] for slot in slots), *(self._asking_loosely[slot] for slot in loose))
        return tuple([condition.match_details(request, reading) for condition in asking])

    def _conditions_at(self, slots: Iterable[int], loose: Iterable[int]) -> Iterator[_FiledCondition]:
        return chain(*(self._paths.values[slot] for slot in slots), *(self._loose.values[slot] for slot in loose))

    def _match_git(self, request: Request, reading: Reading) -> _Gits:
        """Find what is about the repository that a request asks for, and how it matches."""
        git = request.git
        if git is None:
            perhaps = range(len(self._gits)) if is_git_path(reading) else ()
            return tuple((number, Match.PERHAPS) for number in perhaps)
        cached = self._git_cache.get(git)
        if cached is None:
            ways = git_repository_readings(git)
            slots = {slot for way in ways for slot in self._repos.find(fold_all(way))}
            candidates = (
                {number for slot in slots for number in self._repos.values[slot]} if ways else range(len(self._gits))
            )
            matches = (
                (number, self._gits[number].condition.match(request, reading, 0)) for number in sorted(candidates)
            )
            cached = tuple((number, match) for number, match in matches if match is not Match.NO)
            if len(self._git_cache) >= _MOST_FINDINGS:
                self._git_cache.clear()
            self._git_cache[git] = cached
        return cached

    def _find_or_weigh(
        self, key: tuple[object, ...], conditions: Iterable[_FiledCondition], answer: _Answer, leniency: Leniency
    ) -> Finding:
        finding = self._findings.get(key)
        if finding is None:
            if len(self._findings) >= _MOST_FINDINGS:
                self._findings.clear()
                self.decisions.clear()
            finding = self._findings[key] = self._weigh(self._matching(conditions, answer), leniency)
        return finding

    def _matching(self, conditions: Iterable[_FiledCondition], answer: _Answer) -> dict[int, Match]:
        """Return how the rules match, given the answers for their conditions."""
        covering = dict.fromkeys(self._always, Match.YES)
        exempt: dict[int, Match] = {}
        for filed in conditions:
            match = weakest_match((answer(filed), filed.cap))
            found = exempt if filed.exempts else covering
            found[filed.rule] = strongest_match((match, found.get(filed.rule, Match.NO)))
        return {index: subtract_exemption(match, exempt.get(index, Match.NO)) for index, match in covering.items()}

    def _single_failure(
        self, conditions: Iterable[_FiledCondition], request: Request, reading: Reading, length: int
    ) -> Reason | None:
        """Return the one condition that keeps a rule from allowing a request, if a reason names it."""
        blames: set[Reason] = set()
        for filed in conditions:
            if self.rules[filed.rule].allows and not filed.exempts:
                parts = filed.condition.parts(request, reading, length)
                failed = [part.field for part in parts if part.match is not Match.YES]
                if len(failed) == 1 and failed[0] in _BLAMES:
                    blames.add(_BLAMES[failed[0]])
        return min(blames, default=None)

    def connection(self, leniency: Leniency) -> Finding:
        """Decide a connection without a request: as leniently as any request on it could be decided.

        `leniency` ranks findings. The policy provides it, because audit mode affects the order.
        """
        matching = dict.fromkeys(self._always - self._conditional, Match.YES)
        if not self._conditional:
            return self._weigh(matching, leniency)
        certain = self._weigh(matching)
        if certain.denies_or_asks and not certain.by_default:
            return certain
        best: Finding | None = None
        for finding in self._sample_findings(leniency):
            if (
                best is None
                or leniency(finding) > leniency(best)
                or (finding.blame and not best.blame and best.verdict is None)
            ):
                best = finding
            if best.verdict is Verdict.ALLOW:
                break
        assert best is not None
        return self._widen_to_connection(best) if best.allows else best

    def _sample_findings(self, leniency: Leniency) -> Iterator[Finding]:
        """Decide the requests that stand for all others: those of explicit rules, of defaults, and any at all.

        A slash inside a segment was written `%2F`: such a request has two readings, and the stricter one stands.
        """
        depth = longest_path(self.rules)
        opening = (rule for rule in self.rules if rule.allows or rule.action is Verdict.ASK)
        allowing = sorted(opening, key=lambda rule: (rule.default, not rule.allows))
        samples = ((rule, each) for rule in (*allowing, None) for each in sample_requests(rule, depth, self.rules))
        # Requests that no allow covers but an exemption does come last, for there can be many. Also what no rule
        # allows, where that passes: in audit mode, or where a mandatory layer abstains.
        silence = (None,) if leniency(Finding()) else ()
        exempted = (
            (rule, each) for rule in (*allowing, *silence) for each in exempted_requests(rule, depth, self.rules)
        )
        for rule, (request, reading) in chain(samples, islice(exempted, _MOST_EXEMPTED)):
            decoded = tuple(part for segment in reading for part in segment.split("/"))
            ways = {reading: None, decoded: None}
            yield min((self._decide_sample(rule, request, way, leniency) for way in ways), key=leniency)

    def _decide_sample(self, rule: Rule | None, request: Request, reading: Reading, leniency: Leniency) -> Finding:
        """Decide a request that stands for many: what `rule` asks holds, what others hold against it doesn't."""

        def answer(filed: _FiledCondition) -> Match:
            of = self.rules[filed.rule]
            helps = not filed.exempts if of is rule else filed.exempts and not of.allows
            return filed.condition.match(request, reading, 0, Match.YES if helps else Match.NO)

        conditions = [*self._conditions_at(self._paths.find(reading), self._find_loosely(reading)), *self._gits]
        return self._weigh(self._matching(conditions, answer), leniency)

    def _widen_to_connection(self, best: Finding) -> Finding:
        """Return the finding with all rules that could allow some request as leniently as the best one."""
        uncapped = [rule for index, rule in enumerate(self.rules) if index not in self._capped]
        open_to = [rule for rule in uncapped if rule.allows or (rule in self.granted and rule not in self._closed)]
        allowing = tuple(rule for rule in open_to if rule.default is best.by_default)
        winning = tuple(rule for rule in allowing if rule.action is best.verdict or rule in best.granted)
        always = self._weigh(dict.fromkeys(self._always - self._conditional, Match.YES))
        matching = always.matching if always.by_default is best.by_default else ()
        return Finding(best.verdict, winning, best.by_default, allowing, matching, granted=best.granted)

    def _weigh(self, matching: dict[int, Match], leniency: Leniency | None = None) -> Finding:
        """Find the winner of the matching rules. Asks about certain addresses count where no other rule decides.

        `leniency` says whether audit mode allows it; without it those asks don't count.
        """
        certain: list[Rule] = []
        possible = list(self.possible)
        for index in sorted(matching):
            sure = matching[index] is Match.YES and index not in self._capped
            if matching[index] is not Match.NO:
                (certain if sure else possible).append(self.rules[index])
        if self._address_asks.isdisjoint(certain) and self._address_asks.isdisjoint(possible):
            return weigh(certain, possible, self.expired, self.granted, self._closed)
        early = weigh(
            [rule for rule in certain if rule not in self._address_asks],
            [rule for rule in possible if rule not in self._address_asks],
            self.expired,
            self.granted,
            self._closed,
        )
        if leniency is None or is_settled(early, leniency):
            return early
        return weigh(certain, possible, self.expired, self.granted, self._closed)


def is_settled(finding: Finding, leniency: Leniency) -> bool:
    """Whether asks about certain addresses can't change a finding: it passes, or a rule holds it anyway."""
    return leniency(finding) >= PASSES or (finding.denies_or_asks and not finding.by_default) or finding.expired


def _answer_nothing(filed: _FiledCondition) -> Match:
    """Return the answer for a plan without conditions."""
    return weakest_match((filed.cap, Match.NO))
