"""What the rules say about one target on one port and protocol, worked out once and looked up ever after.

A plan takes the rules whose names cover the target (candidates) and keeps those that cover the port. Where none of them
looks at requests there is one answer for everything. Else each request is found in a trie of the rules' paths.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import Protocol
from rules.ports import could_cover, covers
from rules.precedence import Finding, weigh
from rules.rule import Exemption, Http, Rule
from rules.trie import MANY, Part, Trie
from rules.verdicts import Verdict
from rules.witness import longest, witnesses

if TYPE_CHECKING:
    from rules.decision import Decision
    from rules.near import Hint
    from rules.paths import Reading

_MOST_FINDINGS: Final = 1024  # combinations of rules kept a plan: a hostile task can send many paths, but not fill this


class Candidate(NamedTuple):
    """A rule whose target covers the attempt's, with those of its exemptions whose targets do."""

    rule: Rule
    exemptions: tuple[Exemption, ...] = ()


class _Condition(NamedTuple):
    """One `http:` of a rule or an exemption, filed under its paths. What tightens takes `delete` for DELETE."""

    rule: int  # index in the plan's rules
    methods: frozenset[str] | None
    exempts: bool
    tightens: bool

    def covers(self, method: str) -> bool:
        return self.methods is None or (method.upper() if self.tightens else method) in self.methods


class Plan:
    """The answer for one target, port and protocol; or, where a rule looks at requests, the way to it.

    `judged` and `on_connection` are the policy's, kept where they are found and forgotten with what they are made from.
    """

    __slots__ = (
        "_always", "_conditional", "_conditions", "_findings", "_paths",
        "deferred", "judged", "missed", "not_public", "on_connection", "opened", "possible", "rules",
    )  # fmt: skip

    def __init__(
        self,
        candidates: Sequence[Candidate],
        port: int,
        protocol: Protocol,
        *,
        not_public: bool = False,
        resolved: bool = False,
    ) -> None:
        self.not_public = not_public  # the target is an address that is not public
        self.opened = any(candidate.rule.lets_out for candidate in candidates)  # on some port at least
        self.rules: list[Rule] = []  # that cover port and protocol, most specific first
        self.possible: list[Rule] = []  # that could match bytes nobody sees: precedence.py
        self.deferred: list[Rule] = []  # that hold back certain addresses, once those are known
        self.missed: tuple[Rule, str] | None = None  # the first rule that lets out but not here, and the field why
        self._always: set[int] = set()  # indices of `rules` that match unless exempted
        self._conditional: set[int] = set()  # indices of `rules` that a request decides about
        self._conditions: list[list[_Condition]] = []  # by slot of `_paths`
        self._paths = Trie()
        self._findings: dict[tuple[str, tuple[int, ...]], Finding] = {}  # by method and slots of `_paths`
        self.judged: dict[Finding, tuple[Decision, Hint | None]] = {}
        self.on_connection: tuple[Decision, Hint | None] | None = None
        for candidate in candidates:
            if candidate.rule.waits_for_address and not resolved:
                self.deferred.append(candidate.rule)
            elif protocol is Protocol.TCP:
                self._take_unseen(candidate, port)
            else:
                self._take_seen(candidate, port, protocol)

    @property
    def looks_at_requests(self) -> bool:
        """Whether the connection alone doesn't tell what matches."""
        return bool(self._conditional) or any(rule.looks_at_requests for rule in self.deferred)

    def _take_unseen(self, candidate: Candidate, port: int) -> None:
        """Raw TCP: nobody reads it, so what would have to be seen counts against it and never for it."""
        rule = candidate.rule
        spoken = Protocol.TCP
        certain = rule.http is None and covers(rule.ports, port, spoken)
        if rule.lets_out and certain and not any(could_cover(e.ports, port, spoken) for e in candidate.exemptions):
            self._always.add(len(self.rules))
            self.rules.append(rule)
        elif rule.action is Verdict.ALLOW or not could_cover(rule.ports, port, spoken):
            self._miss(rule, "except" if certain else "ports")
        elif not any(e.http is None and covers(e.ports, port, spoken) for e in candidate.exemptions):
            self.possible.append(rule)

    def _take_seen(self, candidate: Candidate, port: int, protocol: Protocol) -> None:
        """TLS and HTTP: what a rule says about requests is filed, to be asked request by request."""
        rule = candidate.rule
        exemptions = [exemption for exemption in candidate.exemptions if covers(exemption.ports, port, protocol)]
        if not covers(rule.ports, port, protocol):
            self._miss(rule, "ports")
            return
        if any(exemption.http is None for exemption in exemptions):
            self._miss(rule, "except")
            return
        index = len(self.rules)
        self.rules.append(rule)
        if rule.http is None:
            self._always.add(index)
        else:
            self._file(rule.http, index, exempts=False, tightens=rule.action is not Verdict.ALLOW)
        for exemption in exemptions:
            if exemption.http is not None:
                self._file(exemption.http, index, exempts=True, tightens=rule.lets_out)

    def _file(self, http: Http, index: int, *, exempts: bool, tightens: bool) -> None:
        self._conditional.add(index)
        condition = _Condition(index, http.methods, exempts, tightens)
        patterns: Iterable[tuple[Part, ...]] = ((MANY,),) if http.paths is None else (path.parts for path in http.paths)
        for parts in patterns:
            slot = self._paths.add(parts)
            if slot == len(self._conditions):
                self._conditions.append([])
            self._conditions[slot].append(condition)

    def _miss(self, rule: Rule, field: str) -> None:
        if self.missed is None and rule.lets_out:
            self.missed = rule, field

    def request(self, method: str, reading: "Reading") -> Finding:
        """Let the strictest rule win that matches a request, by one reading of its path."""
        slots = tuple(self._paths.find(reading)) if self._conditional else ()
        key = method if self._conditional else "", slots
        finding = self._findings.get(key)
        if finding is None:
            if len(self._findings) >= _MOST_FINDINGS:
                self._findings.clear()
                self.judged.clear()
            finding = self._findings[key] = self._weigh(self._matching(method, slots))
        return finding

    def _matching(self, method: str, slots: Iterable[int]) -> set[int]:
        matching, exempt = set(self._always), set[int]()
        for slot in slots:
            for condition in self._conditions[slot]:
                if condition.covers(method):
                    (exempt if condition.exempts else matching).add(condition.rule)
        return matching - exempt

    def connection(self, leniency: Callable[[Finding], int]) -> Finding:
        """Decide a connection by itself: as leniently as any request on it could be decided.

        `leniency` ranks findings; the policy's, because audit mode has a word in it.
        """
        certain = self._weigh(self._always - self._conditional)
        if not self._conditional or (certain.holds_back and not certain.by_default):
            return certain
        best: Finding | None = None
        for finding in self._findings_of_witnesses(leniency):
            if best is None or leniency(finding) > leniency(best):
                best = finding
            if best.verdict is Verdict.ALLOW:
                break
        assert best is not None
        return self._of_whole_connection(best) if best.lets_out else best

    def _findings_of_witnesses(self, leniency: Callable[[Finding], int]) -> Iterator[Finding]:
        """Decide the requests that stand for all others: those of explicit rules, of defaults, and any at all.

        A slash inside a segment was written `%2F`: such a request has two readings, and the stricter one stands.
        """
        depth = longest(self.rules)
        letting_out = sorted((rule for rule in self.rules if rule.lets_out), key=lambda rule: rule.default)
        for http in (*(rule.http for rule in letting_out), None):
            for method, reading in witnesses(http, depth):
                decoded = tuple(part for segment in reading for part in segment.split("/"))
                yield min((self.request(method, path) for path in (reading, decoded)), key=leniency)

    def _of_whole_connection(self, best: Finding) -> Finding:
        """Name all rules by which some request could pass as leniently as the best one."""
        letting_out = [rule for rule in self.rules if rule.lets_out and rule.default is best.by_default]
        winning = [rule for rule in letting_out if rule.action is best.verdict]
        return Finding(best.verdict, tuple(winning), best.by_default, tuple(letting_out))

    def _weigh(self, matching: set[int]) -> Finding:
        return weigh([self.rules[index] for index in sorted(matching)], self.possible)
