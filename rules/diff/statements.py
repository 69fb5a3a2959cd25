"""Describes a diff in sentences and as JSON."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final, NamedTuple

from rules.attempt import Attempt, GitService, Protocol, RefChange
from rules.diff.compare import AUDITED, DiffRow, Effect, PolicyDiff
from rules.diff.regions import PortRange
from rules.diff.sample_attempts import ANOTHER_CASE, OTHER_METHOD
from rules.ports import LAST_PORT
from rules.problems import join_first
from rules.values.addresses import Network, bracket_host
from rules.verdicts import Reason, Verdict

type Kind = frozenset[str]

_MOST_LEFT_OUT: Final = 3


class ValueNames:
    """All kinds there are. `whole`: the patterns of which every kind is among them; None: of each one."""

    def __init__(self, kinds: Iterable[Kind], whole: Collection[str] | None = None) -> None:
        self._kinds_by_pattern: dict[str, set[Kind]] = defaultdict(set)
        for kind in kinds:
            for pattern in kind:
                self._kinds_by_pattern[pattern].add(kind)
        self._whole = None if whole is None else frozenset(whole)

    def describe(self, kinds: Collection[Kind]) -> list[str]:
        """Write some of the kinds: by the patterns that they fill, and else by what they are and what they are not."""
        covered = set(kinds)
        candidates = {pattern for kind in covered for pattern in kind}
        filled = [
            pattern
            for pattern in candidates
            if (self._whole is None or pattern in self._whole) and self._kinds_by_pattern[pattern] <= covered
        ]
        filled.sort(key=lambda pattern: (-len(self._kinds_by_pattern[pattern]), len(pattern), pattern))
        facets: list[str] = []
        remaining = set(covered)
        for pattern in filled:
            if not self._kinds_by_pattern[pattern].isdisjoint(remaining):
                remaining -= self._kinds_by_pattern[pattern]
                facets.append(pattern)
        return [*sorted(facets), *sorted({self._narrowed(kind, covered) for kind in remaining})]

    def _narrowed(self, kind: Kind, covered: set[Kind]) -> str:
        base = max(kind, key=_specificity)
        crossing = sorted(
            p for p in kind if p != base and not self._kinds_by_pattern[base] <= self._kinds_by_pattern[p]
        )
        left_out = list(self._left_out(base, kind, covered))
        also = f" that is also {' and '.join(crossing)}" if crossing else ""
        return base + also + (f" but not {join_first(left_out, _MOST_LEFT_OUT)}" if left_out else "")

    def _left_out(self, base: str, kind: Kind, wanted: set[Kind]) -> Iterator[str]:
        """Find what is inside `base` and not meant, the widest first."""
        inside = {pattern for other in self._kinds_by_pattern[base] for pattern in other if pattern not in kind}
        outside = sorted(
            (p for p in inside if self._kinds_by_pattern[p].isdisjoint(wanted)),
            key=lambda p: (-len(self._kinds_by_pattern[p]), p),
        )
        covered: set[Kind] = set()
        for pattern in outside:
            shared = self._kinds_by_pattern[pattern] & self._kinds_by_pattern[base]
            if not shared <= covered:
                covered |= shared
                yield pattern


def _specificity(pattern: str) -> tuple[bool, int, int, str]:
    """Rank patterns: the one that names most is the most specific."""
    parts = pattern.replace("/", ".").split(".")
    return "*" not in pattern, sum("*" not in part and bool(part) for part in parts), len(pattern), pattern


_MOST_SHOWN: Final = 4
_MERGED: Final = ("method", "path", "protocol", "ports", "address")  # in this order; what else there is stays apart
_FAMILIAR: Final = {(Protocol.TLS, 443): "https", (Protocol.HTTP, 80): "http"}
_SCHEMES: Final = {Protocol.TLS: "https", Protocol.HTTP: "http"}
_BYTES: Final = frozenset({Protocol.TLS, Protocol.HTTP, Protocol.TCP})
_ORDER: Final = (Verdict.ALLOW, Verdict.FLAG, AUDITED, Verdict.ASK, Verdict.DENY)
VERDICT_WORDS: Final = {
    Verdict.ALLOW: "allowed",
    Verdict.FLAG: "flagged",
    AUDITED: "allowed by audit mode",
    Verdict.ASK: "held for approval",
    Verdict.DENY: "denied",
}


class Statement(NamedTuple):
    """One difference: the targets, both decisions, and an example attempt."""

    targets: tuple[str, ...]
    where: dict[str, Any]
    was: Effect
    now: Effect
    example: str

    @property
    def text(self) -> str:
        """Return the difference as a sentence."""
        was, now = _clauses(self.was, self.now)
        return f"{self._subject()}: was {was}, is {now}"

    def value(self) -> dict[str, Any]:
        """Return the difference as a value for JSON."""
        return {
            "targets": list(self.targets),
            **{key: value if isinstance(value, (str, bool)) else list(value) for key, value in self.where.items()},
            "was": _value(self.was),
            "now": _value(self.now),
            "example": self.example,
            "text": self.text,
        }

    def _subject(self) -> str:
        where = self.where
        place = f" where it resolves to {join_first(where['addresses'], _MOST_SHOWN)}" if "addresses" in where else ""
        rest = " that no other rule decides" if where.get("rest") else ""
        if "paths" in where:
            scheme = _SCHEMES.get(Protocol(where["protocols"][0]), "https")
            port = _port_of(where)
            urls = [
                _format_target(target, scheme + "://{}" + port + path)
                for target in self.targets
                for path in where["paths"]
            ]
            return f"{where['methods']} {join_first(urls, _MOST_SHOWN)}{_describe_other_facets(where)}{place}"
        if "git" in where:
            scheme, port = _SCHEMES.get(Protocol(where["protocols"][0]), "https"), _port_of(where)
            urls = [_format_target(target, scheme + "://{}" + port) for target in self.targets]
            return f"git {'/'.join(where['git'])} {join_first(urls, _MOST_SHOWN)}{_describe_other_facets(where)}{place}"
        spoken = where["protocols"]
        what = "anything to" if set(map(Protocol, spoken)) >= _BYTES else "/".join(spoken)
        port = "" if where["ports"] == "every port" else f":{where['ports']}"
        places = [_format_target(target, "{}" + port) for target in self.targets]
        return f"{what} {join_first(places, _MOST_SHOWN)}{rest}{_describe_other_facets(where)}{place}"


def describe_diff(compared: PolicyDiff) -> list[Statement]:
    """Describe a diff in as few statements as possible, newly allowed attempts first."""
    kinds = ValueNames(compared.names, compared.whole)
    by_target: dict[object, list[DiffRow]] = defaultdict(list)
    rows = [_simplify_row(row) for row in compared.rows]
    for row in rows:
        by_target[row.target].append(row)
    by_facets: dict[tuple[Any, ...], tuple[list[Any], DiffRow]] = {}
    undecided = _undecided(rows)
    for target, all_here in by_target.items():
        # What comes before a push follows what could be pushed.
        pushes = any("ref" in row.where for row in all_here)
        shared = [row for row in all_here if not pushes or row.where.get("git") != "push"]
        for where, row in _merge_rows(shared):
            facets = _describe_where(undecided[row.was, row.now] if "rest" in where else where, row)
            key = tuple(sorted((k, v) for k, v in facets.items())), row.was, row.now, isinstance(target, frozenset)
            sharing = by_facets.setdefault(key, ([], row))[0]
            if target not in sharing[-1:]:
                sharing.append(target)
    found = [
        Statement(_targets(targets, kinds), dict(key[0]), row.was, row.now, write_example(row.attempt))
        for key, (targets, row) in by_facets.items()
    ]
    return sorted(found, key=lambda each: (_ORDER.index(each.now.verdict), each.targets, each.text))


def _simplify_row(row: DiffRow) -> DiffRow:
    """Drop differences in terms where the verdict itself differs."""
    if "rest" in row.where:  # that UDP leaves by no default of the language's own is no other reason
        was, now = (s if s.rules else s._replace(reason=Reason.NO_RULE) for s in (row.was, row.now))
        row = row._replace(was=was, now=now)
    if row.was.verdict == row.now.verdict:
        if row.was.unread is not row.now.unread:
            return row
        was, now = (standing._replace(unread=False) for standing in (row.was, row.now))
        return row._replace(was=was, now=now)
    was, now = (standing._replace(unread=False, terms=()) for standing in (row.was, row.now))
    if "address" in row.where:  # the rules that allow the name don't differ
        was, now = (standing._replace(rules=()) if standing.passes else standing for standing in (was, now))
    return row._replace(was=was, now=now)


def _undecided(rows: Iterable[DiffRow]) -> dict[tuple[Effect, Effect], dict[str, frozenset[Any]]]:
    """Merge over all targets what only defaults decide: "that no other rule decides" leaves out the rest by itself."""
    found: dict[tuple[Effect, Effect], dict[str, frozenset[Any]]] = {}
    for row in rows:
        if "rest" in row.where:
            where = found.setdefault((row.was, row.now), {})
            for key, value in row.where.items():
                where[key] = where.get(key, frozenset()) | {value}
    return found


def _merge_rows(rows: list[DiffRow]) -> Iterator[tuple[dict[str, frozenset[Any]], DiffRow]]:
    """Merge the rows of one target, one facet after the other."""
    merged = [({key: frozenset({value}) for key, value in row.where.items()}, row) for row in rows]
    others = sorted({key for row in rows for key in row.where} - {*_MERGED, "rest"})
    for facet in (*others, *_MERGED):
        groups: dict[tuple[Any, ...], tuple[dict[str, frozenset[Any]], DiffRow]] = {}
        for where, row in merged:
            about = frozenset((key, value) for key, value in where.items() if key != facet)
            group = about, facet in where, row.was, row.now
            if group in groups and facet in where:
                known = groups[group][0]
                known[facet] |= where[facet]
            else:
                groups[group] = dict(where), row
        merged = list(groups.values())
        if facet in others:
            merged = [(_drop_facet(where, facet, row), row) for where, row in merged]
    yield from merged


def _drop_facet(where: dict[str, frozenset[Any]], facet: str, row: DiffRow) -> dict[str, frozenset[Any]]:
    """Leave a facet out that makes no difference."""
    every = frozenset(row.among.get(facet, ()))
    return {key: values for key, values in where.items() if key != facet or not every or values != every}


def _describe_where(where: dict[str, frozenset[Any]], row: DiffRow) -> dict[str, Any]:
    """Write the facets of a merged row as rules do."""
    facets: dict[str, Any] = {}
    for key, values in where.items():
        match key:
            case "method":
                facets["methods"] = _methods(values, row.among.get("method", ()))
            case "path":
                facets["paths"] = tuple(ValueNames(row.among["path"]).describe(values))
            case "ports":
                facets["ports"] = _ports(values)
            case "protocol":
                facets["protocols"] = tuple(protocol.value for protocol in Protocol if protocol in values)
            case "address":
                facets["addresses"] = tuple(sorted(map(str, values)))
            case "rest":
                facets["rest"] = True
            case "repository" | "ref":
                facets[key] = tuple(
                    ValueNames(row.among[key]).describe({kind for kind in values if not _is_shouted(kind, values)})
                )
            case _:
                facets[key] = tuple(sorted(values))
    return facets


def _is_shouted(kind: frozenset[str], kinds: frozenset[frozenset[str]]) -> bool:
    """Whether a kind is another one in another case, and needs no mention."""
    plain = frozenset(name.removesuffix(ANOTHER_CASE) for name in kind)
    return plain != kind and plain in kinds


def _methods(values: frozenset[str], among: Iterable[str]) -> str:
    named = sorted({method for method in among if method != OTHER_METHOD and method.isupper()})
    if OTHER_METHOD not in values:
        lower = sorted(f"`{value}`" for value in values if value.upper() not in values)
        return ", ".join([*(method for method in named if method in values), *lower])
    left_out = [method for method in named if method not in values]
    return f"any method but {', '.join(left_out)}:" if left_out else "any method:"


def _ports(values: frozenset[PortRange]) -> str:
    ranges: list[PortRange] = []
    for stretch in sorted(values):
        if ranges and ranges[-1].high + 1 >= stretch.low:
            ranges[-1] = PortRange(ranges[-1].low, max(ranges[-1].high, stretch.high))
        else:
            ranges.append(stretch)
    if ranges == [PortRange(1, LAST_PORT)]:
        return "every port"
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _targets(targets: list[frozenset[str] | Network], kinds: ValueNames) -> tuple[str, ...]:
    names = [target for target in targets if isinstance(target, frozenset)]
    networks = sorted(_shortest(str(target)) for target in targets if not isinstance(target, frozenset))
    return (*kinds.describe(names), *networks)


def _shortest(network: str) -> str:
    """Write a single address as one."""
    address, _, length = network.partition("/")
    return address if length == ("128" if ":" in address else "32") else network


def _clauses(was: Effect, now: Effect) -> tuple[str, str]:
    first, second = _clause(was), _clause(now)
    if was.passes and now.passes and was.unread is not now.unread:
        words = {True: "with its requests unseen", False: "with its requests read"}
        return f"{first} {words[was.unread]}", f"{second} {words[now.unread]}"
    if was.verdict == now.verdict and was.terms != now.terms:
        return f"{first}{_terms(was, now)}", f"{second}{_terms(now, was)}"
    return first, second


def _terms(of: Effect, other: Effect) -> str:
    own = [term for term in of.terms if term not in other.terms]
    return f" with {', '.join(own)}" if own else ""


def _clause(standing: Effect) -> str:
    word = VERDICT_WORDS[standing.verdict]
    by = f" by {join_first([f'`{rule}`' for rule in standing.rules], _MOST_SHOWN)}" if standing.rules else ""
    plain = (standing.rules or standing.passes) and standing.reason in {Reason.RULE, Reason.APPROVAL_UNAVAILABLE}
    return word + by if plain else f"{word}{by} ({standing.reason})"


def _value(standing: Effect) -> dict[str, Any]:
    return {
        "verdict": str(standing.verdict),
        "reason": standing.reason.value,
        "rules": list(standing.rules),
        "unread": standing.unread,
        "terms": list(standing.terms),
    }


def _format_target(target: str, form: str) -> str:
    """Return the text of a target, followed by its exceptions."""
    host, space, rest = target.partition(" ")
    return form.replace("{}", bracket_host(host)) + space + rest


def _port_of(where: dict[str, Any]) -> str:
    ports = where["ports"]
    if ports == "every port":
        return ":*"
    usual = ports.isdigit() and (Protocol(where["protocols"][0]), int(ports)) in _FAMILIAR
    return "" if usual else f":{ports}"


def _describe_other_facets(where: dict[str, Any]) -> str:
    """Return the other conditions as text."""
    known = {"methods", "paths", "ports", "protocols", "addresses", "rest", "git"}
    named = {key: join_first(value, _MOST_SHOWN) for key, value in where.items() if key not in known}
    facets = [text if key == "when" else f"{key} {text}" for key, text in named.items()]
    return f" ({'; '.join(facets)})" if facets else ""


def write_example(attempt: Attempt) -> str:
    """Write an attempt as `exeat explain` takes it."""
    host = bracket_host(attempt.target)
    request = attempt.request
    if request is None:
        return f"{attempt.protocol} {host}:{attempt.port}"
    git = request.git
    if git is not None and git.ref is not None:
        change = f" {git.change}" if git.change in {RefChange.CREATE, RefChange.DELETE} else ""
        return f"git push https://{host}/{git.repo} {git.ref}{change}"
    if git is not None and git.service is GitService.FETCH:
        return f"git fetch https://{host}/{git.repo}"
    scheme = _SCHEMES.get(attempt.protocol, "https")
    port = "" if _FAMILIAR.get((attempt.protocol, attempt.port)) == scheme else f":{attempt.port}"
    return f"{request.method} {scheme}://{host}{port}{request.path}"
