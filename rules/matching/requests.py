"""Matches a rule's `http`, `git` and `credential` against a request, part by part.

A part that a rule leaves out matches anything. A rule that allows (or exempts) has exceptions: its `http` covers a GET
or HEAD only without a body, no WebSocket, under `to: "*"` no URL of more than 2 KB, and a git push only if it has
paths. Those are ways out that the author of `methods: [GET]` does not think of.

Every part answers with a `Match`. What a request doesn't tell (headers, credentials, whether it is git) is `PERHAPS`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import NO_CREDENTIAL, GitRequest, GitService, Protocol, Request
from rules.globs import MANY, fold, fold_pattern, pattern_matches
from rules.matching.precedence import Match, agree_readings, weakest_match
from rules.matching.queries import match_header, match_parameter
from rules.names import HostName
from rules.paths import PathPattern, Reading, cut_readings
from rules.ports import USUAL_PORTS
from rules.rule import Exemption, GitRule, Http, Presence, Rule, Values, repository_readings, strip_git_suffix
from rules.verdicts import Trust, Verdict

if TYPE_CHECKING:
    from rules.addresses import Address

UNNAMED: Final = "\0"  # stands for all that no rule can name (sample_requests.py); a real path with it has no reading
LONGEST_URL: Final = 2048  # bytes, under `to: "*"`
_BODILESS: Final = frozenset({"GET", "HEAD"})
_GIT_ENDS: Final = (("git-receive-pack",), ("git-upload-pack",), ("git-upload-archive",))


class ConditionPart(NamedTuple):
    """Result for one part of a condition on a request."""

    field: str
    match: Match
    wanted: str
    got: str


class Condition(NamedTuple):
    """Conditions on a request: `http`, `git` and `credential` of a rule or exemption.

    `strict`: what is left unsaid is not any, as above. `longest`: bytes of a URL; `implied` that nobody wrote it.
    `folds`: a path in another case, or cut at an escaped `?` or `#`, may be the same: that holds back, and lets nothing
    out. `spares`: it keeps a path from being held back, and so covers one that may be cut only where it covers both.
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
        said = None if rule.http is None else rule.http.max_url
        implied = said is None and strict and rule.http is not None and is_wide(rule)
        longest = LONGEST_URL if implied else said
        folds = rule.action is not Verdict.ALLOW
        return cls(rule.http, rule.git, strict, longest, implied, rule.credential, folds)

    @classmethod
    def of_exemption(cls, rule: Rule, exemption: Exemption) -> "Condition":
        """Return the conditions of an exemption; one from a deny, ask or flag is as narrow as an allow."""
        said = None if exemption.http is None else exemption.http.max_url
        strict = rule.action is not Verdict.ALLOW
        asked = cls(exemption.http, exemption.git, strict, said, credential=exemption.credential)
        return asked._replace(folds=not strict, spares=strict)

    @property
    def has_details(self) -> bool:
        """Whether more is looked at than method, path, size and kind: parameters, headers, git, credentials."""
        if self.git is not None or self.credential is not None:
            return True
        return self.http is not None and bool(self.http.query or self.http.headers)

    def match(self, request: Request, reading: Reading, length: int, oracle: Match | None = None) -> Match:
        """Match a request, its path by one reading; `length` is that of its URL in bytes.

        With an `oracle` the request stands for many: what it says of parameters and headers holds, and of git if the
        request doesn't say whether it is git.
        """
        return weakest_match(part.match for part in self.parts(request, reading, length, oracle))

    def match_details(self, request: Request, reading: Reading) -> tuple[Match, ...]:
        """Say of each thing that `has_details` names whether it is as wanted: asked of every request, so without words.

        One by one, for a refusal tells which of them it was.
        """
        http = self.http
        asked = [] if self.git is None else [_git(self.git, request, reading)]
        if self.credential is not None:
            asked.append(_credential(self.credential, request))
        if http is not None:
            query = request.path.partition("?")[2] if http.query else ""
            asked += [match_parameter(query, name, wanted) for name, wanted in http.query]
            asked += [match_header(request.headers, name, wanted) for name, wanted in http.headers]
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
        wanted = ", ".join(sorted(http.methods))
        yield ConditionPart("http.methods", _method(http.methods, request.method), wanted, request.method)
    strict = condition.strict
    unusual = strict and request.method in _BODILESS
    yield _flag("http.body", http.body, "a body", has=request.body, strict=strict, unusual=unusual)
    yield _flag("http.websocket", http.websocket, "a WebSocket", has=request.websocket, strict=strict, unusual=strict)
    if condition.longest is not None:
        over = Match.PERHAPS if condition.implied else Match.NO
        match = over if length > condition.longest else Match.YES
        yield ConditionPart("http.max_url", match, f"at most {condition.longest} bytes", f"{length} bytes")


def _path(paths: tuple[PathPattern, ...], reading: Reading, *, folds: bool, spares: bool) -> Match:
    """Hold one reading of a path against patterns.

    Many servers find what is asked for in another case, and some cut a path at an escaped `?` or `#`.
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
    """Whether a pattern itself has an escaped `?` or `#`: its server takes those for a part of a path."""
    return "%3F" in path.text or "%23" in path.text


def fold_all(reading: Reading) -> Reading:
    """Return a reading of a path in the form for comparison without case."""
    return tuple(map(fold, reading))


def _method(methods: frozenset[str], method: str) -> Match:
    if method in methods:
        return Match.YES
    return Match.PERHAPS if method.upper() in methods else Match.NO


def _flag(field: str, said: bool | None, what: str, *, has: bool, strict: bool, unusual: bool) -> ConditionPart:  # noqa: FBT001
    """Hold what a request has against what is said of it: who lets out with `true` allows it, and asks for nothing."""
    match = Match.YES if said is None or said is has or (said and strict) else Match.NO
    if said is None and unusual and has:
        match = Match.PERHAPS
    return ConditionPart(field, match, what if said else f"no{what.removeprefix('a')}", what if has else "none")


def _parameters(http: Http, request: Request, oracle: Match | None) -> Iterator[ConditionPart]:
    query = request.path.partition("?")[2] if http.query else ""
    for name, wanted in http.query:
        match = match_parameter(query, name, wanted) if oracle is None else oracle
        yield ConditionPart(f"http.query.{name}", match, describe_values(wanted), "another")


def _headers(http: Http, request: Request, oracle: Match | None) -> Iterator[ConditionPart]:
    for name, wanted in http.headers:
        match = match_header(request.headers, name, wanted) if oracle is None else oracle
        yield ConditionPart(
            f"http.headers.{name}", match, describe_values(wanted), "another" if request.headers else "unknown"
        )


def describe_credential(request: Request) -> str:
    """Describe which credential a request has."""
    if request.credential is None:
        return "none that is known"
    return "none" if request.credential == NO_CREDENTIAL else request.credential or "another"


def _credential(wanted: str, request: Request) -> Match:
    if request.credential is None:
        return Match.PERHAPS
    return Match.YES if request.credential == wanted else Match.NO


def _git(rule: GitRule, request: Request, reading: Reading) -> Match:
    git = request.git
    if git is None:
        return Match.PERHAPS if is_git_path(reading) else Match.NO  # nobody read it as git, so nobody knows
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


def describe_values(wanted: Values) -> str:
    """Describe the values that a rule requires of a parameter or header."""
    return wanted.value if isinstance(wanted, Presence) else ", ".join(pattern.text for pattern in wanted)


def describe_git(git: GitRule) -> str:
    """Describe what a rule requires of git requests."""
    said = ["fetch"] if git.fetch else []
    if git.push is not None:
        changes = "/".join(sorted(change.value for change in git.changes))
        said.append(f"push {', '.join(ref.text for ref in git.push)} ({changes})")
    return f"{' and '.join(said)} of {', '.join(repo.text for repo in git.repos)}"


def describe_git_request(request: Request) -> str:
    """Describe a git request: service, repository, ref and change."""
    git = request.git
    if git is None:
        return "no git"
    change = f" ({git.change.value})" if git.change else ""
    return f"{git.service.value} {git.repo} {git.ref or ''}{change}".rstrip()
