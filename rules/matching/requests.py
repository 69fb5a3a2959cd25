"""Matches a rule's `http`, `git` and `credential` against a request, part by part.

A part that a rule leaves out matches anything. A rule that allows (or exempts) has exceptions: its `http` covers a GET
or HEAD only without a body, no WebSocket, under `to: "*"` no URL of more than 2 KB, and a git push only if it has
paths. Those are ways out that the author of `methods: [GET]` does not think of.

Every part answers with a `Match`. What is unknown of a request (headers, credentials, whether it is git) is `PERHAPS`.

Servers read a query differently: which sign separates parameters, how often they decode, whether case counts. Every
reading is matched. Where the readings differ the answer is `PERHAPS`, which may deny and never allows.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import NO_CREDENTIAL, GitRequest, GitService, Protocol, Request
from rules.matching.precedence import Match, agree_readings, weakest_match
from rules.ports import USUAL_PORTS
from rules.rule import Exemption, GitRule, Http, Presence, Rule, Values, repository_readings, strip_git_suffix
from rules.values.globs import MANY, Glob, fold, fold_pattern, pattern_matches
from rules.values.names import HostName
from rules.values.paths import PathPattern, Reading, cut_readings
from rules.values.patterns import Pattern
from rules.verdicts import Trust, Verdict

if TYPE_CHECKING:
    from rules.values.addresses import Address

UNNAMED: Final = "\0"  # stands for all that no rule can name (sample_requests.py); a real path with it has no reading
LONGEST_URL: Final = 2048  # bytes, under `to: "*"`
_BODILESS: Final = frozenset({"GET", "HEAD"})
_GIT_ENDS: Final = (("git-receive-pack",), ("git-upload-pack",), ("git-upload-archive",))

_ROUNDS: Final = 3  # of decoding
_LONGEST: Final = 16 * 1024  # bytes of a query that are read: servers take 8 to 16 KB of a URL
_MOST: Final = 1000  # parameters, or members of a header's lists: PHP takes no more, and others fewer
_SPECIAL: Final = frozenset("%+;")
_SAME: Final = {ord("."): "_", ord(" "): "_", ord("["): "_"}
_WIDE: Final = re.compile(r"%u([0-9a-fA-F]{4})")  # ASP's way to write any character
# CGI's environment has one name for `X-Team`, `X_Team` and, with some servers, `X.Team` (RFC 3875 section 4.1.18)
_HEADER_SAME: Final = {code: "-" for code in range(0x80) if not chr(code).isalnum()}

type Pairs = tuple[tuple[str, str], ...]


class ConditionPart(NamedTuple):
    """Result for one part of a condition on a request."""

    field: str
    match: Match
    wanted: str
    got: str


class Condition(NamedTuple):
    """Conditions on a request: `http`, `git` and `credential` of a rule or exemption.

    `strict`: the exceptions above apply. `longest`: most bytes of a URL; `implied`: the default, not set by the rule.
    `folds`: a path in another case, or cut at an escaped `?` or `#`, matches too; for denies, asks and flags.
    `spares`: an exemption from those, which covers a path that may be cut only if it covers both forms.
    """

    http: Http | None
    git: GitRule | None
    strict: bool = False
    longest: int | None = None
    implied: bool = False
    credential: str | None = None
    folds: bool = False
    spares: bool = False

    @classmethod
    def of_rule(cls, rule: Rule) -> "Condition":
        """Return the conditions of a rule."""
        strict = rule.action.allows
        stated = None if rule.http is None else rule.http.max_url
        implied = stated is None and strict and rule.http is not None and is_wide(rule)
        longest = LONGEST_URL if implied else stated
        folds = rule.action is not Verdict.ALLOW
        return cls(rule.http, rule.git, strict, longest, implied, rule.credential, folds)

    @classmethod
    def of_exemption(cls, rule: Rule, exemption: Exemption) -> "Condition":
        """Return the conditions of an exemption; one from a deny, ask or flag is as narrow as an allow."""
        stated = None if exemption.http is None else exemption.http.max_url
        strict = rule.action is not Verdict.ALLOW
        asked = cls(exemption.http, exemption.git, strict, stated, credential=exemption.credential)
        return asked._replace(folds=not strict, spares=strict)

    @property
    def has_details(self) -> bool:
        """Whether more is looked at than method, path, size and kind: parameters, headers, git, credentials."""
        if self.git is not None or self.credential is not None:
            return True
        return self.http is not None and bool(self.http.query or self.http.headers)

    def match(self, request: Request, reading: Reading, length: int, oracle: Match | None = None) -> Match:
        """Match a request, its path by one reading; `length` is that of its URL in bytes.

        With an `oracle` the request stands for many: it is the answer for parameters and headers, and for git if the
        request doesn't say whether it is git.
        """
        return weakest_match(part.match for part in self.parts(request, reading, length, oracle))

    def match_details(self, request: Request, reading: Reading) -> tuple[Match, ...]:
        """Match each condition of `has_details`, without texts, because it runs for every request.

        The results stay separate, because a refusal names the condition that failed.
        """
        http = self.http
        asked = [] if self.git is None else [_git(self.git, request, reading)]
        if self.credential is not None:
            asked.append(_credential(self.credential, request))
        if http is not None:
            query = request.path.partition("?")[2] if http.query else ""
            asked += [match_parameter(query, name, expected) for name, expected in http.query]
            asked += [match_header(request.headers, name, expected) for name, expected in http.headers]
        return tuple(asked)

    def parts(
        self, request: Request, reading: Reading, length: int, oracle: Match | None = None
    ) -> Iterator[ConditionPart]:
        """Answer part by part, in the order in which a person would ask."""
        if self.http is not None:
            yield from _http(self, self.http, request, reading, length)
            yield from _parameters(self.http, request, oracle)
            yield from _headers(self.http, request, oracle)
        if self.git is not None:
            known = oracle is None or request.git is not None
            match = _git(self.git, request, reading) if known or oracle is None else oracle
            yield ConditionPart("git", match, describe_git(self.git), describe_git_request(request))
        if self.credential is not None:
            match = _credential(self.credential, request) if oracle is None else oracle
            yield ConditionPart("credential", match, self.credential, describe_credential(request))


def is_wide(rule: Rule) -> bool:
    """Whether a rule is about every name or every address: `to: "*"`."""
    return any(name.parts == (MANY,) for name in rule.names) or any(not net.prefixlen for net in rule.networks)


def trust_of(rule: Rule) -> Trust:
    """Return the trust of a rule: untrusted by default if it covers every name."""
    return rule.trust or (Trust.UNTRUSTED if is_wide(rule) else Trust.TRUSTED)


def url_length(protocol: Protocol, target: "HostName | Address", port: int, path: str) -> int:
    """Count the bytes of a request's URL as its server gets it."""
    host = len(target) if isinstance(target, HostName) else len(str(target)) + 2 * (target.version == 6)
    usual = port == USUAL_PORTS.get(protocol)
    scheme = len("https://") if protocol is Protocol.TLS else len("http://")
    size = len(path) if path.isascii() else len(path.encode("utf-8", "surrogateescape"))
    return scheme + host + (0 if usual else len(str(port)) + 1) + size


def is_git_path(reading: Reading) -> bool:
    """Whether a path is one that git's clients ask for (gitprotocol-http(5))."""
    return reading[-1:] in _GIT_ENDS or reading[-2:] == ("info", "refs")


def git_repository_readings(git: GitRequest) -> tuple[Reading, ...]:
    """List every reading of the repository's path; empty: ambiguous."""
    bare = strip_git_suffix(git.repo)
    return (tuple(bare.split("/")),) if UNNAMED in bare else repository_readings(bare)


def is_push(request: Request, reading: Reading) -> bool:
    """Whether a request is, or looks like, a git push or the beginning of one."""
    if request.git is None:
        return reading[-1:] == ("git-receive-pack",)
    return request.git.service is GitService.PUSH


def _http(condition: Condition, http: Http, request: Request, reading: Reading, length: int) -> Iterator[ConditionPart]:
    if http.paths is not None:
        covered = _path(http.paths, reading, folds=condition.folds, spares=condition.spares)
        yield ConditionPart("http.paths", covered, ", ".join(path.text for path in http.paths), "/" + "/".join(reading))
    elif condition.strict:
        match = Match.PERHAPS if is_push(request, reading) else Match.YES
        yield ConditionPart("http.paths", match, "paths", "a git push")
    if http.methods is not None:
        expected = ", ".join(sorted(http.methods))
        yield ConditionPart("http.methods", _method(http.methods, request.method), expected, request.method)
    strict = condition.strict
    unusual = strict and request.method in _BODILESS
    yield _flag("http.body", http.body, "a body", has=request.body, strict=strict, unusual=unusual)
    yield _flag("http.websocket", http.websocket, "a WebSocket", has=request.websocket, strict=strict, unusual=strict)
    if condition.longest is not None:
        over = Match.PERHAPS if condition.implied else Match.NO
        match = over if length > condition.longest else Match.YES
        yield ConditionPart("http.max_url", match, f"at most {condition.longest} bytes", f"{length} bytes")


def _path(paths: tuple[PathPattern, ...], reading: Reading, *, folds: bool, spares: bool) -> Match:
    """Match one reading of a path against patterns.

    Many servers ignore the case of a path, and some cut a path at an escaped `?` or `#`.
    """
    found = [path for path in paths if path.matches(reading)]
    if found:
        cut = (cut_readings(reading) or ()) if spares and not any(map(_names_end, found)) else ()
        return Match.YES if all(any(path.matches(way) for path in paths) for way in cut) else Match.PERHAPS
    if not folds:
        return Match.NO
    ways = [fold_all(way) for way in (reading, *(cut_readings(reading) or ()))]
    return (
        Match.PERHAPS
        if any(pattern_matches(fold_pattern(path.parts), way) for path in paths for way in ways)
        else Match.NO
    )


def _names_end(path: PathPattern) -> bool:
    """Whether a pattern has an escaped `?` or `#`: its server takes those as a part of the path."""
    return "%3F" in path.text or "%23" in path.text


def fold_all(reading: Reading) -> Reading:
    """Return a reading of a path in the form for comparison without case."""
    return tuple(map(fold, reading))


def _method(methods: frozenset[str], method: str) -> Match:
    if method in methods:
        return Match.YES
    return Match.PERHAPS if method.upper() in methods else Match.NO


def _flag(field: str, stated: bool | None, what: str, *, has: bool, strict: bool, unusual: bool) -> ConditionPart:  # noqa: FBT001
    """Compare a property of a request with a flag of a rule: in an allow, `true` permits it and doesn't require it."""
    match = Match.YES if stated is None or stated is has or (stated and strict) else Match.NO
    if stated is None and unusual and has:
        match = Match.PERHAPS
    return ConditionPart(field, match, what if stated else f"no{what.removeprefix('a')}", what if has else "none")


def _parameters(http: Http, request: Request, oracle: Match | None) -> Iterator[ConditionPart]:
    query = request.path.partition("?")[2] if http.query else ""
    for name, expected in http.query:
        match = match_parameter(query, name, expected) if oracle is None else oracle
        yield ConditionPart(f"http.query.{name}", match, describe_values(expected), "another")


def _headers(http: Http, request: Request, oracle: Match | None) -> Iterator[ConditionPart]:
    for name, expected in http.headers:
        match = match_header(request.headers, name, expected) if oracle is None else oracle
        yield ConditionPart(
            f"http.headers.{name}", match, describe_values(expected), "another" if request.headers else "unknown"
        )


def describe_credential(request: Request) -> str:
    """Describe which credential a request has."""
    if request.credential is None:
        return "none that is known"
    return "none" if request.credential == NO_CREDENTIAL else request.credential or "another"


def _credential(expected: str, request: Request) -> Match:
    if request.credential is None:
        return Match.PERHAPS
    return Match.YES if request.credential == expected else Match.NO


def _git(rule: GitRule, request: Request, reading: Reading) -> Match:
    git = request.git
    if git is None:
        return Match.PERHAPS if is_git_path(reading) else Match.NO  # the git protocol wasn't parsed, so this is unknown
    return match_git(rule, git)


def match_git(rule: GitRule, git: GitRequest) -> Match:
    """Match a rule's `git` against a Git request."""
    return weakest_match((_repository(rule, git), _service(rule, git)))


def _repository(rule: GitRule, git: GitRequest) -> Match:
    ways = git_repository_readings(git)
    if not ways:
        return Match.PERHAPS
    exact = agree_readings(any(repo.matches(way) for repo in rule.repos) for way in ways)
    if exact is not Match.NO:
        return exact
    folded_parts = map(fold_all, ways)
    return (
        Match.PERHAPS
        if any(repo.matches(way, folded=True) for way in folded_parts for repo in rule.repos)
        else Match.NO
    )


def _service(rule: GitRule, git: GitRequest) -> Match:
    if git.service is GitService.FETCH:
        return Match.YES if rule.fetch else Match.NO
    if rule.push is None:
        return Match.NO
    if git.ref is None:
        return Match.PERHAPS
    change = Match.PERHAPS if git.change is None else Match.YES if git.change in rule.changes else Match.NO
    return weakest_match((change, _ref(rule, git.ref)))


def _ref(rule: GitRule, ref: str) -> Match:
    segments = tuple(ref.split("/"))
    whole = all(segments) and not ref.endswith(".lock") and ".." not in ref  # git-check-ref-format(1), in short
    if any(pattern.matches(segments) for pattern in rule.push or ()):
        return Match.YES if whole else Match.PERHAPS
    folded_parts = tuple(fold(segment) for segment in segments if segment)
    return Match.PERHAPS if any(pattern.matches(folded_parts, folded=True) for pattern in rule.push or ()) else Match.NO


def describe_values(expected: Values) -> str:
    """Describe the values that a rule requires of a parameter or header."""
    return expected.value if isinstance(expected, Presence) else ", ".join(pattern.text for pattern in expected)


def describe_git(git: GitRule) -> str:
    """Describe what a rule requires of git requests."""
    stated = ["fetch"] if git.fetch else []
    if git.push is not None:
        changes = "/".join(sorted(change.value for change in git.changes))
        stated.append(f"push {', '.join(ref.text for ref in git.push)} ({changes})")
    return f"{' and '.join(stated)} of {', '.join(repo.text for repo in git.repos)}"


def describe_git_request(request: Request) -> str:
    """Describe a git request: service, repository, ref and change."""
    git = request.git
    if git is None:
        return "no git"
    change = f" ({git.change.value})" if git.change else ""
    return f"{git.service.value} {git.repo} {git.ref or ''}{change}".rstrip()


def match_parameter(query: str, name: str, expected: Values) -> Match:
    """Match a parameter of a query (without its `?`) against the values of a rule.

    A query that is longer than some servers read is unknown, and is not parsed.
    """
    if len(query) > _LONGEST or query.count("&") + query.count(";") > _MOST:
        return Match.PERHAPS
    if _SPECIAL.isdisjoint(query):
        return _match_values(_split(query, "&"), name, expected)
    match = _combine({_match_values(pairs, name, expected) for pairs in _readings(query)})
    if match is Match.PERHAPS or "+" not in query:
        return match
    if match is Match.YES and not isinstance(expected, Presence):
        return match
    literal = match_parameter(query.replace("+", "%2B"), name, expected)  # it is a space to nearly every server
    return weakest_match((literal, Match.PERHAPS)) if match is Match.NO else _combine({match, literal})


def match_header(headers: Pairs, name: str, expected: Values) -> Match:
    """Match a header against the values of a rule; `headers` have lower-case names. Without headers: unknown.

    A field that comes more than once, or is a list with commas, matches for certain only if each of its lines does.
    Servers differ in which names are the same to them, and one that `Connection` names is for the next hop alone (RFC
    9110 section 7.6.1): the server behind a proxy may never see it.
    """
    if not headers:
        return Match.PERHAPS
    same = name.translate(_HEADER_SAME)
    lines = [(key == name, value.strip(" \t")) for key, value in headers if key.translate(_HEADER_SAME) == same]
    if not lines:
        return Match.YES if expected is Presence.ABSENT else Match.NO
    found = {_header_held(lines, expected)}
    if any(key == "connection" and name in map(str.strip, value.lower().split(",")) for key, value in headers):
        found.add(_header_held([], expected))
    return _combine(found)


def _header_held(lines: Sequence[tuple[bool, str]], expected: Values) -> Match:
    """Answer for what there is of a header, each line with whether its name is exactly this one."""
    exact = any(exactly for exactly, _ in lines)
    if isinstance(expected, Presence):
        if bool(lines) is not exact:
            return Match.PERHAPS
        return Match.YES if exact is (expected is Presence.PRESENT) else Match.NO
    if exact and all(_one_of(expected, line) for _, line in lines):
        return Match.YES
    if len(lines) + sum(line.count(",") for _, line in lines) > _MOST:
        return Match.PERHAPS
    texts = [text for _, line in lines for text in (line, *line.split(","))]
    return Match.PERHAPS if any(_one_of_folded(expected, text) for text in texts) else Match.NO


def _combine(found: set[Match]) -> Match:
    return found.pop() if len(found) == 1 else Match.PERHAPS


def _split(query: str, separator: str) -> Pairs:
    return tuple([(name, value) for name, _, value in [p.partition("=") for p in query.split(separator) if p]])


@lru_cache(maxsize=16)  # every rule, and every parameter of one, asks about the same request
def _readings(query: str) -> tuple[Pairs, ...]:
    return tuple(dict.fromkeys(_each_reading(query)))


def _each_reading(query: str) -> Iterator[Pairs]:
    for pairs in (_split(query, "&"), _split(query.replace(";", "&"), "&")):
        for rounds in (1, _ROUNDS):
            yield tuple((_decoded(name, rounds), _decoded(value, rounds)) for name, value in pairs)
            if "%" in query:
                yield tuple((_other_readings(name, rounds), _other_readings(value, rounds)) for name, value in pairs)


def _match_values(pairs: Pairs, name: str, expected: Values) -> Match:
    """Answer by one reading; a name that is the same to some server (another case, a part of a list) counts as well."""
    bare = _base_names(name)
    same = [(key == name, value) for key, value in pairs if key == name or not bare.isdisjoint(_base_names(key))]
    exact = any(exactly for exactly, _ in same)
    if isinstance(expected, Presence):
        if bool(same) is not exact:
            return Match.PERHAPS
        return Match.YES if exact is (expected is Presence.PRESENT) else Match.NO
    if exact and all(_one_of(expected, value) for _, value in same):
        return Match.YES
    return Match.PERHAPS if any(_one_of_folded(expected, value) for _, value in same) else Match.NO


@lru_cache(maxsize=1024)
def _base_names(name: str) -> frozenset[str]:
    """Normalise names that some server treats as the same: `Name`, `name[]`, `name[0]`, ` name`."""
    return frozenset(fold(part.strip()).translate(_SAME) for part in (name, name.partition("[")[0]))


def _other_readings(text: str, rounds: int) -> str:
    """Decode as ASP does, or up to a NUL, where PHP's names end."""
    wide = _WIDE.sub(lambda found: chr(int(found[1], 16)).encode("utf-8", "replace").decode(), text)
    return _decoded(wide, rounds).partition("\0")[0]


def _decoded(text: str, rounds: int) -> str:
    text = text.replace("+", " ")
    for _ in range(rounds):
        head, *pieces = text.split("%")
        out = bytearray(head.encode("utf-8", "surrogateescape"))
        for piece in pieces:
            digits = piece[:2]
            if (
                len(digits) == 2
                and digits.isascii()
                and digits.isalnum()
                and digits.strip("0123456789abcdefABCDEF") == ""
            ):
                out.append(int(digits, 16))
                out += piece[2:].encode("utf-8", "surrogateescape")
            else:
                out += b"%" + piece.encode("utf-8", "surrogateescape")
        further = out.decode("utf-8", "surrogateescape")
        if further == text:
            break
        text = further
    return text


def _one_of(patterns: Iterable[Pattern], text: str) -> bool:
    return any(pattern.matches(text) for pattern in patterns)


def _one_of_folded(patterns: Iterable[Pattern], text: str) -> bool:
    lowered = fold(text.strip())
    for pattern in patterns:
        expected = fold(pattern.text.strip())
        if Glob.parse(expected).matches(lowered) if "*" in expected else expected == lowered:
            return True
    return False
