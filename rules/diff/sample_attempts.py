"""Sample attempts of a diff: callers and requests that stand for all that the rules distinguish."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from itertools import product
from typing import Any, Final, NamedTuple

from rules.attempt import NO_LABELS, Caller, GitRequest, GitService, Protocol, RefChange, Request
from rules.matching.requests import LONGEST_URL, is_wide, url_length
from rules.matching.signatures import ANY_TEXT, SEGMENTS, Signatures, characters
from rules.rule import GitRule, Http, Presence, Rule, Values
from rules.values.addresses import Address
from rules.values.globs import MANY, Part
from rules.values.names import HostName
from rules.values.paths import PathPattern, percent_encode, readings
from rules.values.patterns import Pattern, TaskSelector
from rules.verdicts import Verdict

_READ: Final = {False: (("task that is", "clean"),), True: (("task that is", "tainted"),)}


class CallerKind(NamedTuple):
    """Sample caller; `where` names its kind by what rules look at."""

    caller: Caller
    where: tuple[tuple[str, str], ...] = ()


def sample_callers(rules: Iterable[Rule]) -> list[CallerKind]:
    """Return a sample caller of each kind that the rules distinguish; one without a task if they distinguish none."""
    rules = tuple(rules)
    selectors = [s for rule in rules for s in (rule.selector, *(e.selector for e in rule.excepts)) if s is not None]
    ends = sorted({rule.until for rule in rules if rule.until is not None})
    minds = any(rule.depends_on_taint for rule in rules)
    return [
        CallerKind(Caller(task, labels, day, tainted), (*task_text, *day_text, *(_READ[tainted] if minds else ())))
        for (task, labels, task_text), (day, day_text), tainted in product(
            _tasks(selectors), _days(ends), _READ if minds else (False,)
        )
    ]


def _days(ends: Sequence[date]) -> list[tuple[date | None, tuple[tuple[str, str], ...]]]:
    if not ends:
        return [(None, ())]
    days: list[tuple[date | None, tuple[tuple[str, str], ...]]] = []
    begins: date | None = None
    for end in ends:
        text = f"until {end}" if begins is None else f"from {begins} until {end}"
        days.append((end, (("when", text),)))
        begins = end + timedelta(days=1)
    return [*days, (begins, (("when", f"from {begins}"),))]


def _tasks(selectors: Sequence[TaskSelector]) -> list[tuple[str, Mapping[str, str], tuple[tuple[str, str], ...]]]:
    if not selectors:
        return [("", NO_LABELS, ())]
    names = [pattern for selector in selectors for pattern in selector.tasks]
    keys = sorted({key for selector in selectors for key, _ in selector.labels})
    values = {
        key: [p for s in selectors for named, patterns in s.labels if named == key for p in patterns] for key in keys
    }
    choices = [_texts(names) if names else [("", "")], *([*_texts(values[key]), (None, "none")] for key in keys)]
    found: list[tuple[str, Mapping[str, str], tuple[tuple[str, str], ...]]] = []
    for (task, task_kind), *labels in product(*choices):
        where = [("task", task_kind)] if names else []
        where += [(f"label {key}", kind) for key, (_, kind) in zip(keys, labels, strict=True)]
        own = {key: value for key, (value, _) in zip(keys, labels, strict=True) if value is not None}
        found.append((task or "", own, tuple(where)))
    return found


def _texts(patterns: Sequence[Pattern]) -> list[tuple[str | None, str]]:
    """Return a text for each combination of patterns, and one that no pattern covers, each with its name."""
    return [(text, kind or "any other") for text, kind in sample_texts(tuple(dict.fromkeys(patterns)))]


def sample_texts(patterns: tuple[Pattern, ...]) -> list[tuple[str, str]]:
    """Return a text for each combination of patterns that match it, and last one that no pattern matches."""
    walk = Signatures([characters(pattern.glob or pattern.text) for pattern in patterns], ANY_TEXT)
    found = [
        ("".join(each.parts), " and ".join(sorted(patterns[number].text for number in each.signature)))
        for each in walk.find(bool, other=_letters(patterns))
    ]
    other = next(
        (text for text in _others() if not any(pattern.matches(text) for pattern in patterns)),
        None,
    )
    return found if other is None else [*found, (other, "")]


def _letters(patterns: Iterable[Pattern]) -> str:
    used = {character for pattern in patterns for character in pattern.text}
    return next(letter for letter in "xyzwvq0123456789abcdefghijklmnop~" if letter not in used or letter == "~")


def _others() -> Iterable[str]:
    yield "other"
    yield from (f"other{number}x" for number in range(64))


OTHER_METHOD: Final = "EXEAT-ANY"  # a token that no rule names (RFC 9110 section 5.6.2)
ANY_PATH: Final = "/**"
_EVERY_PATH: Final = PathPattern(ANY_PATH, (MANY,))
_PUSHES: Final = PathPattern.parse("/**/git-receive-pack")  # a rule without paths doesn't allow pushes
_FETCHES: Final = (PathPattern.parse("/**/git-upload-pack"), PathPattern.parse("/**/info/refs"))
_UNESCAPED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,=:@")
_PLAIN: Final = _UNESCAPED - frozenset("&=+,!$'()*:@")
ANOTHER_CASE: Final = " in another case"
_OTHER: Final = frozenset({"any other"})
_PADDING: Final = "exeat-padding-"

OF_REQUESTS: Final = frozenset(
    {"method", "path", "query", "headers", "with", "URL", "git", "repository", "ref", "credential"}
)  # facets

type Where = dict[str, Any]


class SampleValue(NamedTuple):
    """A value of a facet: what it is called, and the text or value that has it."""

    label: str
    value: Any


class SampleRequests:
    """Sample requests that stand for all that `rules` distinguish."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        pairs = [(rule.http, rule.git) for rule in rules]
        pairs += [(exemption.http, exemption.git) for rule in rules for exemption in rule.excepts]
        conditions = [http for http, _ in pairs if http is not None]
        self._gits = [git for _, git in pairs if git is not None]
        named = sorted({method for http in conditions for method in http.methods or ()})
        folding = any(rule.action is not Verdict.ALLOW or rule.excepts for rule in rules)  # `delete` for DELETE
        self._methods = (*named, *(method.lower() for method in named if folding), OTHER_METHOD)
        patterns = {path.text: path for http in conditions for path in http.paths or ()}
        shown = frozenset(patterns)
        if any(http.paths is None for http in conditions):
            patterns.setdefault(_PUSHES.text, _PUSHES)
        if self._gits:
            patterns.update({path.text: path for path in (_PUSHES, *_FETCHES)})
        self._patterns = tuple(patterns[text] for text in sorted(patterns))
        self._paths = _paths(self._patterns)
        self._conditions = conditions
        self._wide = any(rule.http is not None and rule.http.max_url is None and is_wide(rule) for rule in rules)
        self._plain = any(rule.allows and rule.http is None for rule in rules) or any(rule.excepts for rule in rules)
        self._credentials = _credentials(rules)
        self._variations: dict[tuple[int, ...], _Variation] = {}
        self.among: dict[str, tuple[Any, ...]] = {
            "method": self._methods,
            "path": tuple(signature & (shown | {ANY_PATH}) for signature, _ in self._paths),
        }
        self._shown = shown | {ANY_PATH}
        self._of_git = list(_git_requests(self._gits, self._patterns)) if self._gits else []
        for facet in ("repository", "ref"):
            self.among[facet] = tuple(dict.fromkeys(where[facet] for where, _ in self._of_git if facet in where))

    @property
    def asks(self) -> bool:
        """Whether any rule has conditions on requests."""
        return any(rule.looks_at_requests for rule in self._rules)

    def within(
        self, changed: Sequence[Rule], protocol: Protocol, target: HostName | Address, port: int
    ) -> Iterator[tuple[Where, Request]]:
        """Return the sample requests that a changed rule can match, with the kind of each."""
        for (where, request), kind in product(self._within(changed, protocol, target, port), self._credentials):
            if kind.value is None:
                yield where, request
            else:
                yield {**where, "credential": kind.label}, request._replace(credential=kind.value)

    def _within(
        self, changed: Sequence[Rule], protocol: Protocol, target: HostName | Address, port: int
    ) -> Iterator[tuple[Where, Request]]:
        yielded: set[tuple[str, str]] = set()
        for rule in changed:
            for method, (signature, path) in product(self._methods, self._paths):
                if (method, path) not in yielded and _within(rule.http, method, signature):
                    yielded.add((method, path))
                    where = {"method": method, "path": signature & self._shown}
                    variation = self._variation(method, signature)
                    for more, request in variation.requests(method, path):
                        for size, sized in variation.sized(request, protocol, target, port):
                            yield {**where, **more, **size}, sized
        yield from self._of_git

    def _variation(self, method: str, signature: frozenset[str]) -> "_Variation":
        """Find the other conditions that matter where a rule covers the method and the path."""
        matching = [number for number, http in enumerate(self._conditions) if _within(http, method, signature)]
        key = tuple(matching)
        if key not in self._variations:
            conditions = [self._conditions[number] for number in matching]
            self._variations[key] = _Variation.of(conditions, plain=self._plain, wide=self._wide)
        return self._variations[key]


class _Variation(NamedTuple):
    """Parts of requests that some conditions distinguish, besides methods and paths."""

    queries: list[SampleValue]
    headers: list[SampleValue]
    shapes: list[SampleValue]
    sizes: list[int]

    @classmethod
    def of(cls, conditions: Sequence[Http], *, plain: bool, wide: bool) -> "_Variation":
        sizes = {http.max_url for http in conditions if http.max_url is not None}
        return cls(
            _parameters([http.query for http in conditions]),
            _headers([http.headers for http in conditions]),
            _shapes(conditions, plain=plain),
            sorted({*sizes, *([LONGEST_URL] if wide and conditions else [])}),
        )

    def requests(self, method: str, path: str) -> Iterator[tuple[Where, Request]]:
        """Vary the query, the headers and what follows them."""
        for query, headers, shape in product(self.queries, self.headers, self.shapes):
            named = (("query", query), ("headers", headers), ("with", shape))
            where = {key: kind.label for key, kind in named if kind.label}
            target = f"{path}?{query.value}" if query.value else path
            yield where, Request(method, target, headers.value, *shape.value)

    def sized(
        self, request: Request, protocol: Protocol, target: HostName | Address, port: int
    ) -> Iterator[tuple[Where, Request]]:
        """Pad the URL to each length that rules distinguish."""
        if not self.sizes:
            yield {}, request
            return
        natural = url_length(protocol, target, port, request.path)
        yielded: set[int] = set()
        for least in (0, *(size + 1 for size in self.sizes)):
            missing = max(least - natural, 0)
            joint = "&" if "?" in request.path else "?"
            padding = joint + _PADDING + "z" * max(missing - len(_PADDING) - 1, 0) if missing else ""
            length = natural + len(padding)
            over = sum(length > size for size in self.sizes)
            if over not in yielded:
                yielded.add(over)
                size_range = (
                    f"up to {self.sizes[over]} bytes" if over < len(self.sizes) else f"over {self.sizes[-1]} bytes"
                )
                padded = Request(
                    request.method, request.path + padding, request.headers, request.body, request.websocket
                )
                yield {"URL": size_range}, padded


def _within(http: Http | None, method: str, signature: frozenset[str]) -> bool:
    if http is None:
        return True
    if http.methods is not None and method.upper() not in http.methods:
        return False
    return http.paths is None or any(path.text in signature for path in http.paths)


@lru_cache(maxsize=4096)
def _paths(patterns: tuple[PathPattern, ...]) -> tuple[tuple[frozenset[str], str], ...]:
    """Yield the patterns and a sample path for each combination."""
    ordered = (_EVERY_PATH, *(pattern for pattern in patterns if pattern.text != ANY_PATH))
    walk = Signatures([pattern.parts for pattern in ordered], SEGMENTS)
    found = walk.find(lambda parts: bool(readings(write_path(parts))))
    return tuple(
        (frozenset(ordered[number].text for number in each.signature), write_path(each.parts)) for each in found
    )


def _shapes(conditions: Sequence[Http], *, plain: bool) -> list[SampleValue]:
    """Return requests with and without bodies and WebSockets, where rules distinguish them, also by leaving them out.

    `plain`: some rule allows without `http`.
    """
    ref_kind = any(http.body is not None or http.websocket is not None for http in conditions)
    if not ref_kind and not (plain and conditions):
        return [SampleValue("", (False, False))]
    return [
        SampleValue("no body", (False, False)),
        SampleValue("a body", (True, False)),
        SampleValue("a WebSocket", (False, True)),
        SampleValue("a WebSocket with a body", (True, True)),
    ]


def _parameters(conditions: Iterable[tuple[tuple[str, Values], ...]]) -> list[SampleValue]:
    """Return a query for each case that rules distinguish of the parameters that they name."""
    choices = [
        [
            SampleValue(f"no {name}", ""),
            *(
                SampleValue(f"{name}={kind or 'other'}", f"{_query(name)}={_query(text)}")
                for text, kind in _values(patterns)
            ),
            SampleValue(f"{name} read in two ways", f"{_query(name)}[]={_query(_values(patterns)[0][0])}"),
        ]
        for name, patterns in _by_name(conditions).items()
    ]
    return [
        SampleValue(", ".join(kind.label for kind in kinds), "&".join(kind.value for kind in kinds if kind.value))
        for kinds in product(*choices)
    ]


def _credentials(rules: Sequence[Rule]) -> list[SampleValue]:
    """Return a credential for each case that rules distinguish; `None` if no rule looks at credentials."""
    exempted = (exemption.credential for rule in rules for exemption in rule.excepts)
    named = {name for name in (*(rule.credential for rule in rules), *exempted) if name is not None}
    return (
        [*(SampleValue(name, name) for name in sorted(named)), SampleValue("another", "")]
        if named
        else [SampleValue("", None)]
    )


def _headers(conditions: Iterable[tuple[tuple[str, Values], ...]]) -> list[SampleValue]:
    choices = [
        [
            SampleValue(f"no {name}", ()),
            *(SampleValue(f"{name}: {kind or 'other'}", ((name, text),)) for text, kind in _values(patterns)),
            SampleValue(f"{name} read in two ways", ((name, f"{_values(patterns)[0][0]}, zzz"),)),
        ]
        for name, patterns in _by_name(conditions).items()
    ]
    if not choices:
        return [SampleValue("", ())]
    host = ("host", "x.example")
    known = [
        SampleValue(", ".join(kind.label for kind in kinds), (host, *(pair for kind in kinds for pair in kind.value)))
        for kinds in product(*choices)
    ]
    return [*known, SampleValue("unknown", ())]


def _by_name(conditions: Iterable[tuple[tuple[str, Values], ...]]) -> dict[str, tuple[Pattern, ...]]:
    found: dict[str, list[Pattern]] = {}
    for pairs in conditions:
        for name, wanted in pairs:
            found.setdefault(name, []).extend(() if isinstance(wanted, Presence) else wanted)
    return {name: tuple(dict.fromkeys(patterns)) for name, patterns in sorted(found.items())}


def _values(patterns: tuple[Pattern, ...]) -> list[tuple[str, str]]:
    return sample_texts(patterns) or [("other", "")]


def _query(text: str) -> str:
    return percent_encode(text, _PLAIN)


def _git_requests(gits: Sequence[GitRule], paths: tuple[PathPattern, ...]) -> Iterator[tuple[Where, Request]]:
    """Yield git requests for each combination of repositories, refs and request paths."""
    refs = list(_refs(gits))
    for service, suffix in _ASKED:
        for kind, repo in _match_repositories(gits, suffix, paths):
            path = write_path((*repo, *suffix))
            name = "/".join(repo)
            if service is GitService.FETCH:
                yield (
                    {"git": "fetch", "repository": kind},
                    Request("POST", path, body=True, git=GitRequest(service, name)),
                )
            elif suffix[-1] == "refs":
                whole = f"{path}?service=git-receive-pack"
                yield {"git": "push", "repository": kind}, Request("GET", whole, git=GitRequest(service, name))
            else:
                for (ref_kind, ref), change in product(refs, RefChange):
                    where = {"git": change.value, "repository": kind, "ref": ref_kind}
                    yield where, Request("POST", path, body=True, git=GitRequest(service, name, ref, change))


_ASKED: Final = (
    (GitService.FETCH, ("git-upload-pack",)),
    (GitService.PUSH, ("git-receive-pack",)),
    (GitService.PUSH, ("info", "refs")),
)


def _match_repositories(
    gits: Sequence[GitRule], suffix: tuple[str, ...], paths: tuple[PathPattern, ...]
) -> Iterator[tuple[frozenset[str], tuple[str, ...]]]:
    """Yield a repository and its name for each combination of repository and path patterns."""
    repos = {repo.text: (repo.parts, repo.folded) for git in gits for repo in git.repos}
    patterns = [((*parts, *suffix), (*folded, *suffix)) for parts, folded in repos.values()]
    walk = _folding((MANY, *suffix), patterns, [path.parts for path in paths])
    for found in walk.find(lambda parts: len(parts) > len(suffix) and bool(readings(write_path(parts)))):
        repo = found.parts[: -len(suffix)]
        kind = _named_signature(found.signature, list(repos))
        yield kind, repo
        shouted = tuple(part.upper() for part in repo)
        if shouted != repo:
            yield _in_another_case(kind), shouted


def _refs(gits: Sequence[GitRule]) -> Iterator[tuple[frozenset[str], str]]:
    refs = {ref.text: (ref.parts, ref.folded) for git in gits for ref in git.push or ()}
    walk = _folding(("refs", MANY), list(refs.values()), [])
    for found in walk.find(lambda parts: len(parts) > 1):
        kind = _named_signature(found.signature, list(refs))
        ref = "/".join(found.parts)
        yield kind, ref
        if kind != _OTHER:
            yield _in_another_case(kind), "/".join(("refs", *(part.upper() for part in found.parts[1:])))
            yield frozenset(f"{name} with something broken" for name in kind), f"{ref}/"


def _folding(
    every: tuple[Part, ...], patterns: list[tuple[tuple[Part, ...], tuple[Part, ...]]], more: list[tuple[Part, ...]]
) -> Signatures:
    """Walk over patterns with and without case; `every`: the patterns that matter."""
    return Signatures([every, *(way for ways in patterns for way in ways), *more], SEGMENTS, {0})


def _named_signature(signature: frozenset[int], names: list[str]) -> frozenset[str]:
    """Name a combination of `_folding` by its exact patterns, or else by those that differ only in case."""
    exact = frozenset(name for number, name in enumerate(names) if 2 * number + 1 in signature)
    folded = frozenset(name for number, name in enumerate(names) if 2 * number + 2 in signature)
    return exact or _in_another_case(folded) or _OTHER


def _in_another_case(kind: frozenset[str]) -> frozenset[str]:
    return frozenset(name if name.endswith((ANOTHER_CASE, *_OTHER)) else name + ANOTHER_CASE for name in kind)


def write_path(parts: Iterable[str]) -> str:
    """Write segments as a request has them (RFC 3986 section 3.3)."""
    return "/" + "/".join(percent_encode(part, _UNESCAPED) for part in parts)
