"""Which requests are git's, and of which repository: read from method, path, query and type (gitprotocol-http(5)).

Pure. A server takes a request for git by its URL alone, so the URL decides here too, by every reading of its path: one
that is git's by one reading and not by another is refused, and so is whatever would be git's in another spelling.
What is not read ref by ref here (git over WebDAV) is refused as well. Asked where a rule has `git`, and in audit mode
for events alone.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import quote

from proxy.request.request_head import Unclear
from rules.attempt import Git, GitService
from rules.paths import cut_readings, readings
from rules.verdicts import Reason

PUSH: Final = "git-receive-pack"
_SERVICES: Final = {
    "git-upload-pack": GitService.FETCH,
    "git-upload-archive": GitService.FETCH,
    PUSH: GitService.PUSH,
}
_READS: Final = frozenset({"GET", "HEAD"})
_DAV: Final = frozenset({"PUT", "MKCOL", "MOVE", "COPY", "LOCK", "UNLOCK", "PROPPATCH"})
_SUFFIX: Final = ".git"
_FAN: Final = re.compile(r"[0-9a-f]{2}")
_OBJECT: Final = re.compile(r"[0-9a-f]{38}(?:[0-9a-f]{24})?(?:[._].*)?")
# A repository's own files, as far as a client of the dumb protocol has a use for them (gitrepository-layout(5))
_FILES: Final = frozenset({"HEAD", "branches", "config", "hooks", "info", "objects", "packed-refs", "refs", "shallow"})


class _Shape(NamedTuple):
    """What one reading of a path says. `service` None: the files of a repository, by which the dumb protocol reads."""

    repo: str
    service: str | None
    advertisement: bool  # what comes before the service's own request


def git_request(method: str, target: str, kinds: "tuple[str, ...]") -> Git | None:
    """Return what a request wants of git; None: it isn't git's. Raises Unclear.

    `target` is the path with its query, `kinds` the values of Content-Type. A push's refs are not known yet.
    """
    path, question, query = target.partition("?")
    ways = readings(path)
    found = {_shape(segments, method) for segments in ways}
    found |= {_shape(cut, method) for segments in ways for cut in cut_readings(segments) or ()} - {None}
    typed = any("x-git-" in kind.lower() for kind in kinds)
    if len(found) > 1:
        raise Unclear("the path is a git repository's by one reading, and not by another", Reason.AMBIGUOUS_PATH)
    if not found:
        return None  # a path that can't be read, which no rule lets out
    shape = found.pop()
    if shape is None:
        if typed:
            raise Unclear("the Content-Type is one of git's, and the path is not")
        return None
    if shape.advertisement:
        return _advertisement(shape.repo, method, query, plain=not question)
    if shape.service is None:
        return Git(GitService.FETCH, shape.repo) if not question else None
    if method != "POST" or question:
        raise Unclear("a git service is asked in another way than with POST and no query")
    if kinds != (f"application/x-{shape.service}-request",):
        raise Unclear("the Content-Type is not that of the git service")
    return Git(_SERVICES[shape.service], shape.repo)


def _advertisement(repo: str, method: str, query: str, *, plain: bool) -> Git:
    if method not in _READS:
        raise Unclear("git over WebDAV can't be read")
    if plain:  # the dumb protocol, or a client that still has to find out
        return Git(GitService.FETCH, repo)
    name, _, service = query.partition("=")
    if name != "service" or service not in _SERVICES:
        raise Unclear("`info/refs` is asked for something else than one service of git")
    return Git(_SERVICES[service], repo)


def _shape(segments: tuple[str, ...], method: str) -> _Shape | None:
    """Return what one reading of a path stands for. Raises Unclear for what a less exact server takes for git's."""
    parts = tuple(part for segment in segments for part in segment.split("/"))
    reads = method in _READS
    for at, part in enumerate(parts):
        bare = part.rstrip(". ").lower()
        if bare in _SERVICES and not reads:
            if part != bare or at != len(parts) - 1:
                raise Unclear("the path has the name of a git service in another spelling or place")
            return _Shape(_repo(parts[:at]), part, advertisement=False)
    if parts[-2:] == ("info", "refs"):
        return _Shape(_repo(parts[:-2]), None, advertisement=True)
    inside = _inside(parts)
    if reads:
        return None if inside is None else _Shape(_repo(parts[:inside]), None, advertisement=False)
    if inside is not None or _is_written(parts, method):
        raise Unclear("git over WebDAV can't be read")
    return None


def _inside(parts: tuple[str, ...]) -> int | None:
    """Return where a path goes from a repository's name into its objects, or to its HEAD."""
    for at, part in enumerate(parts):
        rest = parts[at + 1 :]
        if part == "objects" and rest:
            loose = len(rest) == 2 and _FAN.fullmatch(rest[0]) and _OBJECT.fullmatch(rest[1])
            if loose or (len(rest) == 2 and rest[0] in {"info", "pack"}):
                return at
    return len(parts) - 1 if parts[-1:] == ("HEAD",) and parts[-2:-1] and parts[-2].endswith(_SUFFIX) else None


def _is_written(parts: tuple[str, ...], method: str) -> bool:
    """Whether this writes a repository's files, which no rule would see refs in; LFS below `info/lfs` is plain HTTP."""
    for at, part in enumerate(parts):
        rest = parts[at + 1 :]
        if part.lower().endswith(_SUFFIX) and rest[:1] and rest[0] in _FILES and rest[:2] != ("info", "lfs"):
            return True
        if part == "refs" and rest[:1] in {("heads",), ("tags",)} and method in _DAV:
            return True
    return False


def _repo(parts: tuple[str, ...]) -> str:
    """Return a repository's path, written as a URL has it and without `.git`. Raises Unclear if it is not one."""
    name = "/".join(parts)
    bare = name.removesuffix(_SUFFIX)
    if not bare or bare.endswith("/") or bare.lower().endswith(_SUFFIX):
        raise Unclear("the path doesn't name one repository", Reason.AMBIGUOUS_PATH)
    return quote(bare, safe="/!$&'()*+,:=@~")
