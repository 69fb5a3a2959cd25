"""Decides whether any request on a connection could be allowed, by trying sample requests.

A connection is decided before its requests are seen. It is allowed only if some request on it could pass; otherwise it
would be opened for nothing. A pattern covers endlessly many paths, but for the verdict only some differ: put a text
that no rule can name (NUL) wherever a wildcard stands, and whatever covers that covers every other text there too; let
`**` be any number of segments up to one more than the longest pattern has, and what covers those covers any number.
So the requests given here represent all requests that a rule allows, as far as methods, paths, bodies and git go.
Parameters and headers aren't tried: each rule that allows is taken to match, and each deny or ask is not. Such a
connection may be opened for nothing; every request on it is decided all the same.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Final

from rules.attempt import GitRequest, GitService, RefChange, Request
from rules.matching.requests import UNNAMED, match_git
from rules.rule import GitRule, Http, Rule
from rules.values.globs import MANY, ONE, Glob, Part
from rules.values.paths import Reading
from rules.verdicts import Verdict

_ANYTHING: Final[tuple[Part, ...]] = (MANY,)
_FETCHING: Final = (("GET", False, ("info", "refs")), ("POST", True, ("git-upload-pack",)))
_PUSHING: Final = (("GET", False, ("info", "refs")), ("POST", True, ("git-receive-pack",)))
_ANY_REF: Final[tuple[Part, ...]] = ("refs", ONE)
type Flags = tuple[tuple[bool, bool], ...]  # whether there is a body, whether it is a WebSocket


def longest_path(rules: Iterable[Rule]) -> int:
    """Count the parts of the longest path pattern that any of the rules has, in exemptions too."""
    rules = tuple(rules)
    matches = [http for rule in rules for http in (rule.http, *(e.http for e in rule.excepts)) if http is not None]
    paths = (len(pattern.parts) for http in matches for pattern in http.paths or ())
    return max((*paths, *(len(repo.parts) + 2 for git in _gits(rules) for repo in git.repos)), default=0)


def pushed_refs(rules: Iterable[Rule]) -> tuple[tuple[str, RefChange], ...]:
    """Return a ref and a change for each kind of push that a rule distinguishes, and one that no rule names."""
    rules = tuple(rules)
    depth = max((len(ref.parts) for git in _gits(rules) for ref in git.push or ()), default=0)
    patterns = {
        ref.parts for rule in rules if rule.git and rule.action is not Verdict.DENY for ref in rule.git.push or ()
    }
    refs = sorted({"/".join(path) for parts in (*patterns, _ANY_REF) for path in sample_paths(parts, depth)})
    return tuple(product(refs, RefChange))


def sample_requests(rule: Rule | None, depth: int, rules: Iterable[Rule]) -> Iterator[tuple[Request, Reading]]:
    """Return a request and a reading of its path for each kind that `rule` (None: no rule) covers.

    `rules` are all that could match, `depth` is their `longest_path`. Patterns have at most two `**`
    (paths.py), which bounds how many there are.
    """
    http, git = (None, None) if rule is None else (rule.http, rule.git)
    rules = tuple(rules)
    if git is None:
        for request, path in _http_samples(http, depth, rules):
            yield request, path
        return
    refs = pushed_refs(rules)
    for conditions, path in _git_samples(git, depth, refs):
        if http is None:
            yield conditions, path
            continue
        for request, there in _http_samples(http, depth, rules):  # both have to cover it, so the path is that of `http`
            yield Request(request.method, "", body=request.body, websocket=request.websocket, git=conditions.git), there


def exempted_requests(rule: Rule | None, depth: int, rules: Iterable[Rule]) -> Iterator[tuple[Request, Reading]]:
    """Return a request for each kind that other rules exempt from a deny or ask, as `rule` may cover it.

    An exemption's own patterns aren't enough: it may overlap with those of `rule`.
    """
    rules = tuple(rules)
    exemptions = [e for each in rules if each.action is not Verdict.ALLOW for e in each.excepts if e.looks_at_requests]
    if not exemptions:
        return
    from rules.matching.signatures import SEGMENTS, Signatures, TooManyError  # few rules have such exemptions

    for git in (exemption.git for exemption in exemptions if exemption.git is not None):
        yield from _git_samples(git, depth, pushed_refs(rules))
    own = None if rule is None else rule.http
    conditions = [http for http in (own, *(exemption.http for exemption in exemptions)) if http is not None]
    methods = sorted({method for http in conditions for method in http.methods or ()} | {UNNAMED})
    patterns = {_ANYTHING: None, **{path.parts: None for http in conditions for path in http.paths or ()}}
    try:
        paths = [found.parts for found in Signatures(tuple(patterns), SEGMENTS).find(lambda _: True)]
    except TooManyError:
        return  # a connection that can't be tried is denied
    flags = {flag for http in (None, *conditions) for flag in _flags(http, rules)}
    gits = _distinct_gits(rule, depth, rules)
    for path, method, (body, websocket), git_request in product(paths, methods, sorted(flags), gits):
        yield Request(method, "", body=body, websocket=websocket, git=git_request), path


def _distinct_gits(rule: Rule | None, depth: int, rules: Iterable[Rule]) -> Iterable[GitRequest | None]:
    """Return a Git request of `rule` for each answer that the `git` of other rules gives; None if none has any."""
    own = None if rule is None else rule.git
    others = [git for git in _gits(rules) if git != own]
    if own is None or not others:
        return (None,)
    requests = (request.git for request, _ in _git_samples(own, depth, pushed_refs(rules)) if request.git is not None)
    return {tuple(match_git(other, git) for other in others): git for git in requests}.values()


def _http_samples(http: Http | None, depth: int, rules: Iterable[Rule]) -> Iterator[tuple[Request, Reading]]:
    methods = (UNNAMED,) if http is None or http.methods is None else sorted(http.methods)
    patterns = (_ANYTHING,) if http is None or http.paths is None else tuple(path.parts for path in http.paths)
    flags = _flags(http, rules)
    for parts in patterns:
        for path in sample_paths(parts, depth):
            for method in methods:
                for body, websocket in flags:
                    yield Request(method, "", body=body, websocket=websocket), path


def _git_samples(git: GitRule, depth: int, refs: Iterable[tuple[str, RefChange]]) -> Iterator[tuple[Request, Reading]]:
    for parts in (repo.parts for repo in git.repos):
        for repo in sample_paths(parts, depth):
            name = "/".join(repo)
            tried = [(_FETCHING, GitRequest(GitService.FETCH, name))] if git.fetch else []
            if git.push is not None:
                tried += [(_PUSHING, GitRequest(GitService.PUSH, name, ref, change)) for ref, change in refs]
            for (ends, conditions), suffix in product(tried, ("", ".git")):
                spelled = (*repo[:-1], repo[-1] + suffix) if repo else repo
                for method, body, end in ends:
                    yield Request(method, "", body=body, git=conditions), (*spelled, *end)


def _flags(http: Http | None, rules: Iterable[Rule]) -> Flags:
    """Try with and without a body, and as a WebSocket, where it makes a difference to a rule."""
    conditions = [h for rule in rules for h in (rule.http, *(e.http for e in rule.excepts)) if h is not None]
    own = http or Http()
    about_bodies = own.body is None and any(h.body is not None for h in conditions)
    about_websockets = own.websocket is None and any(h.websocket is not None for h in conditions)
    bodies = (False, True) if about_bodies or own.body else (False,)
    websockets = (False, True) if about_websockets or own.websocket else (False,)
    return tuple(product(bodies, websockets))


def _gits(rules: Iterable[Rule]) -> Iterator[GitRule]:
    for rule in rules:
        for git in (rule.git, *(exemption.git for exemption in rule.excepts)):
            if git is not None:
                yield git


def sample_paths(parts: tuple[Part, ...], depth: int) -> Iterator[Reading]:
    """Return paths that stand for all that a pattern matches, compared with patterns of up to `depth` parts."""
    for lengths in product(range(depth + 2), repeat=sum(part is MANY for part in parts)):
        remaining = iter(lengths)
        path: list[str] = []
        for part in parts:
            path += [UNNAMED] * next(remaining) if part is MANY else [fill_part(part)]
        yield tuple(path)


def fill_part(part: Part, by: str = UNNAMED) -> str:
    """Return a text that a part matches, with `by` in place of every wildcard."""
    if isinstance(part, Glob):
        return by.join((part.prefix, *part.middle, part.suffix))
    return by if part is ONE else str(part)
