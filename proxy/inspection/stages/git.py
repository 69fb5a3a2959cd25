"""Recognises git requests (gitprotocol-http(5)), and combines the decisions on all refs of a push.

Pure. A server recognises a git request by its URL alone, so the URL decides here, too, in every reading of its path. A
path that is git's in one reading only is denied, and so is another spelling of a git service. Git over WebDAV, whose
refs can't be read, is denied as well. All this applies where a rule has `git`, and in audit mode for events alone.

Each ref of a push is an attempt of its own, and the strictest decision applies to the whole request, since a server
accepts or rejects the pack for all refs. git shows no body of a 403 for a push. So a push is denied in git's own
protocol (gitprotocol-pack(5), "Report Status"): messages that git shows as `remote: ...`, and a reason for each ref.
"""

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from proxy.gate.block_page import Page, visible
from proxy.request.git_push import DecidedRefs
from proxy.request.request_head import UnclearError
from rules.attempt import Attempt, GitRequest, GitService
from rules.explain.reasons import REASONS
from rules.values.paths import cut_readings, readings
from rules.verdicts import STRICTEST_FIRST, Outcome, Reason, Scan, Trust

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.event_loop.turn import Sliced
    from proxy.request.git_push import Command, Push
    from rules.decision import Decision
    from rules.matching.policy import Policy


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
    """Git request that a path stands for. `service` None: repository files, as the dumb protocol reads them."""

    repo: str
    service: str | None
    advertisement: bool  # what comes before the service's own request


def git_request(method: str, target: str, kinds: "tuple[str, ...]") -> GitRequest | None:
    """Return what a request wants of git; None: it isn't git's. Raises UnclearError.

    `target` is the path with its query, `kinds` the values of Content-Type. A push's refs are not known yet.
    """
    path, question, query = target.partition("?")
    ways = readings(path)
    found = {_shape(segments, method) for segments in ways}
    found |= {_shape(cut, method) for segments in ways for cut in cut_readings(segments) or ()} - {None}
    typed = any("x-git-" in kind.lower() for kind in kinds)
    if len(found) > 1:
        raise UnclearError("servers may or may not read the path as a git repository's", Reason.AMBIGUOUS_PATH)
    if not found:
        return None  # a path that can't be read, which no rule lets out
    shape = found.pop()
    if shape is None:
        if typed:
            raise UnclearError("the Content-Type is one of git's, and the path is not")
        return None
    if shape.advertisement:
        return _advertisement(shape.repo, method, query, plain=not question)
    if shape.service is None:
        return GitRequest(GitService.FETCH, shape.repo) if not question else None
    if method != "POST" or question:
        raise UnclearError("a git service needs POST without a query")
    if kinds != (f"application/x-{shape.service}-request",):
        raise UnclearError("the Content-Type is not that of the git service")
    return GitRequest(_SERVICES[shape.service], shape.repo)


def _advertisement(repo: str, method: str, query: str, *, plain: bool) -> GitRequest:
    if method not in _READS:
        raise UnclearError("git over WebDAV can't be read")
    if plain:  # the dumb protocol, or a client that still has to find out
        return GitRequest(GitService.FETCH, repo)
    name, _, service = query.partition("=")
    if name != "service" or service not in _SERVICES:
        raise UnclearError("`info/refs` must name exactly one git service")
    return GitRequest(_SERVICES[service], repo)


def _shape(segments: tuple[str, ...], method: str) -> _Shape | None:
    """Return the git request that a path stands for. Raises UnclearError where servers read it in different ways."""
    parts = tuple(part for segment in segments for part in segment.split("/"))
    reads = method in _READS
    for at, part in enumerate(parts):
        bare = part.rstrip(". ").lower()
        if bare in _SERVICES and not reads:
            if part != bare or at != len(parts) - 1:
                raise UnclearError("the path has the name of a git service in another spelling or place")
            return _Shape(_repo(parts[:at]), part, advertisement=False)
    if parts[-2:] == ("info", "refs"):
        return _Shape(_repo(parts[:-2]), None, advertisement=True)
    inside = _inside(parts)
    if reads:
        return None if inside is None else _Shape(_repo(parts[:inside]), None, advertisement=False)
    if inside is not None or _is_written(parts, method):
        raise UnclearError("git over WebDAV can't be read")
    return None


def _inside(parts: tuple[str, ...]) -> int | None:
    """Return where a path leaves a repository's name for its objects or HEAD."""
    for at, part in enumerate(parts):
        rest = parts[at + 1 :]
        if part == "objects" and rest:
            loose = len(rest) == 2 and _FAN.fullmatch(rest[0]) and _OBJECT.fullmatch(rest[1])
            if loose or (len(rest) == 2 and rest[0] in {"info", "pack"}):
                return at
    return len(parts) - 1 if parts[-1:] == ("HEAD",) and parts[-2:-1] and parts[-2].endswith(_SUFFIX) else None


def _is_written(parts: tuple[str, ...], method: str) -> bool:
    """Whether a request writes repository files without refs (WebDAV); LFS below `info/lfs` is plain HTTP."""
    for at, part in enumerate(parts):
        rest = parts[at + 1 :]
        if part.lower().endswith(_SUFFIX) and rest[:1] and rest[0] in _FILES and rest[:2] != ("info", "lfs"):
            return True
        if part == "refs" and rest[:1] in {("heads",), ("tags",)} and method in _DAV:
            return True
    return False


def _repo(parts: tuple[str, ...]) -> str:
    """Return a repository's path in URL form without `.git`. Raises UnclearError if it is none."""
    name = "/".join(parts)
    bare = name.removesuffix(_SUFFIX)
    if not bare or bare.endswith("/") or bare.lower().endswith(_SUFFIX):
        raise UnclearError("the path doesn't name one repository", Reason.AMBIGUOUS_PATH)
    return quote(bare, safe="/!$&'()*+,:=@~")


_STRICTER: Final = (Outcome.BLOCKED, Outcome.WOULD_BLOCK, Outcome.PASSED)
_PACKETS: Final = {"side-band-64k": 65519, "side-band": 999}  # bytes of one, without its length and band
_TEXT, _MESSAGE = b"\1", b"\2"  # bands


FEW_REFS: Final = 10  # that are decided in one slice


class PushDecision(NamedTuple):
    """Decision on a push and on each ref. The first attempt is that of the strictest decision."""

    decision: "Decision"
    attempts: tuple[Attempt, ...]
    refs: "tuple[tuple[str, Decision], ...]"
    commands: tuple[str, ...]  # as events say them: those that no rule keeps out (`log: pattern`), and how many it does
    quiet: frozenset[str]  # refs that are kept out
    capabilities: frozenset[str]
    detail: str


def decide_refs_ahead(policy: "Policy", attempt: Attempt, push: "Push") -> "Sliced[None]":
    """Decide on every parsed ref, one in a slice, so that `decide_push` only compares."""
    if attempt.request is None or attempt.request.git is None or len(push.commands) < FEW_REFS:
        return
    ahead = push.ahead = DecidedRefs(policy, attempt, {})
    for command in push.commands:
        one = _of_ref(attempt, command)
        ahead.decisions[command] = one, policy.decide(one)
        yield


def _of_ref(attempt: Attempt, command: "Command") -> Attempt:
    request = attempt.request
    assert request is not None
    assert request.git is not None
    git = GitRequest(GitService.PUSH, request.git.repo, command.ref, command.change)
    return attempt._replace(request=request._replace(git=git))


def decide_push(policy: "Policy", attempt: Attempt, push: "Push") -> PushDecision:
    """Decide on every parsed ref; `attempt` is the push as its head describes it."""
    ahead = {} if push.ahead is None else push.ahead.of(policy, attempt)
    decided: list[tuple[Attempt, Decision]] = []
    for command in push.commands:
        if (known := ahead.get(command)) is None:
            one = _of_ref(attempt, command)
            known = one, policy.decide(one)
        decided.append(known)
    position = min(range(len(decided)), key=lambda at: _openness(decided[at][1]))
    first, decision = decided[position]
    rest = (one for at, (one, _) in enumerate(decided) if at != position)
    command = push.commands[position]
    kept_out = zip(push.commands, decided, strict=True)
    quiet = frozenset(command.ref for command, (_, one) in kept_out if one.pattern is not None)
    return PushDecision(
        _strictest(decision, [one for _, one in decided]),
        (first, *rest),
        tuple((command.ref, one) for command, (_, one) in zip(push.commands, decided, strict=True)),
        _told(push, quiet),
        quiet,
        push.capabilities,
        "" if decision.passes else f"of {len(decided)} refs, `{command.ref}` ({command.change}) decides",
    )


def deny_all(push_decision: PushDecision, decision: "Decision", detail: str) -> PushDecision:
    """Deny a whole push for a reason that is no ref's."""
    return push_decision._replace(
        decision=decision, refs=tuple((ref, decision) for ref, _ in push_decision.refs), detail=detail
    )


def _told(push: "Push", quiet: frozenset[str]) -> tuple[str, ...]:
    """Describe the refs of a push for events, without those whose rules log only patterns."""
    told = [
        f"{command.change} {command.ref} {old} {new}"
        for command, (old, new) in zip(push.commands, push.objects, strict=True)
        if command.ref not in quiet
    ]
    untold = len(push.commands) - len(told)
    return (*told, f"[{untold} more]") if untold else tuple(told)


def _openness(decision: "Decision") -> tuple[int, bool, int]:
    """Rank decisions: a push with a denied ref needs no approval."""
    return _STRICTER.index(decision.outcome), decision.needs_approval, STRICTEST_FIRST.index(decision.verdict)


def strictest(*decisions: "Decision") -> "Decision":
    """Return the strictest of several decisions on one request."""
    return _strictest(min(decisions, key=_openness), decisions)


def _strictest(strictest: "Decision", decisions: "Iterable[Decision]") -> "Decision":
    """Return the strictest decision with every limit and approval of all of them, and the earliest end."""
    every = list(decisions)
    held = strictest.needs_approval
    ends = [one.expires for one in every if one.expires is not None]
    patterns = [one.pattern or "" for one in every]  # of the path, which is that of all of them
    return strictest._replace(
        limits=tuple(dict.fromkeys(entry for one in every for entry in one.limits)),
        approval=tuple(dict.fromkeys(entry for one in every for entry in one.approval if held)),
        expires=min(ends, default=None),
        idle_timeout=min(one.idle_timeout for one in every),
        scan=Scan.strictest(one.scan for one in every),
        trust=Trust.TRUSTED if all(one.trust is Trust.TRUSTED for one in every) else Trust.UNTRUSTED,
        ca=tuple(ca for ca in strictest.ca if all(ca in one.ca for one in every)),
        pattern=", ".join(dict.fromkeys(patterns)) if all(patterns) else None,
    )


def report(push_decision: PushDecision, page: Page) -> Page | None:
    """Return a refusal as a push's client understands it; None: it wants none, and gets the page that others get.

    `page` is the refusal in text. Sideband (gitprotocol-common(5), gitprotocol-pack(5)): 1 carries the report, 2 what
    is shown to people.
    """
    if push_decision.capabilities.isdisjoint({"report-status", "report-status-v2"}):
        return None
    status = _line(b"unpack ok\n")
    status += b"".join(_line(f"ng {ref} {why}\n".encode()) for ref, why in _refusals(push_decision, page)) + b"0000"
    room = next((size for name, size in _PACKETS.items() if name in push_decision.capabilities), None)
    body = status
    if room is not None:
        shown = b"".join(_line(_MESSAGE + line + b"\n") for line in page.body.splitlines())
        pieces = (status[at : at + room] for at in range(0, len(status), room))
        body = shown + b"".join(_line(_TEXT + piece) for piece in pieces) + b"0000"
    kept = [field for field in page.headers if field[0].lower() not in {b"content-type", b"content-length"}]
    headers = (
        (b"Content-Type", b"application/x-git-receive-pack-result"),
        (b"Content-Length", b"%d" % len(body)),
        *kept,
    )
    return Page(HTTPStatus.OK, page.phrase, headers, body)


def _refusals(push_decision: PushDecision, page: Page) -> "Iterator[tuple[str, str]]":
    """Yield each ref with the reason why it is rejected."""
    for ref, decision in push_decision.refs:
        if push_decision.decision.passes:
            yield ref, page.body.partition(b"\n")[0].decode("ascii")
        elif decision.passes:
            yield ref, "exeat: another ref of this push is refused"
        else:
            by = f" ({visible(decision.rules[0])})" if decision.rules else ""
            yield ref, f"exeat: {REASONS[decision.reason].meaning}{by}"


def _line(data: bytes) -> bytes:
    return b"%04x%b" % (len(data) + 4, data)
