"""One decision on all refs of a push, and how its client is told ref by ref.

Pure. Each ref is an attempt of its own, and the strictest decides the whole request: a server takes or leaves the pack
for all of them. git shows nobody the body of a 403 that answers a push, so a push that was read is refused in git's own
words (gitprotocol-pack(5), "Report Status"): messages that it shows as `remote: ...`, and for every ref why not.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.gate.block_page import MEANING, Page, visible
from proxy.request.git_push import DecidedRefs
from rules.attempt import Attempt, Git, GitService
from rules.verdicts import STRICTEST_FIRST, Outcome, Scan, Trust

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.event_loop.slices import Sliced
    from proxy.request.git_push import Command, Push
    from rules.decision import Decision
    from rules.matching.policy import Policy

_STRICTER: Final = (Outcome.BLOCKED, Outcome.WOULD_BLOCK, Outcome.PASSED)
_PACKETS: Final = {"side-band-64k": 65519, "side-band": 999}  # bytes of one, without its length and band
_TEXT, _MESSAGE = b"\1", b"\2"  # bands


FEW_REFS: Final = 10  # that are decided in one slice


class Judged(NamedTuple):
    """The decision on a push: of all of it, and of each ref. The first attempt is that of the strictest."""

    decision: "Decision"
    attempts: tuple[Attempt, ...]
    refs: "tuple[tuple[str, Decision], ...]"
    commands: tuple[str, ...]  # as events say them: those that no rule keeps out (`log: pattern`), and how many it does
    quiet: frozenset[str]  # refs that are kept out
    capabilities: frozenset[str]
    detail: str


def judge_ahead(policy: "Policy", attempt: Attempt, push: "Push") -> "Sliced[None]":
    """Decide on every ref that was read, a ref in a slice, so that `judge_push` has no more to do than to compare."""
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
    git = Git(GitService.PUSH, request.git.repo, command.ref, command.change)
    return attempt._replace(request=request._replace(git=git))


def judge_push(policy: "Policy", attempt: Attempt, push: "Push") -> Judged:
    """Decide on every ref that was read; `attempt` is the push as far as its head says."""
    ahead = {} if push.ahead is None else push.ahead.of(policy, attempt)
    decided: list[tuple[Attempt, Decision]] = []
    for command in push.commands:
        if (known := ahead.get(command)) is None:
            one = _of_ref(attempt, command)
            known = one, policy.decide(one)
        decided.append(known)
    strictest = min(range(len(decided)), key=lambda at: _openness(decided[at][1]))
    first, decision = decided[strictest]
    rest = (one for at, (one, _) in enumerate(decided) if at != strictest)
    command = push.commands[strictest]
    kept_out = zip(push.commands, decided, strict=True)
    quiet = frozenset(command.ref for command, (_, one) in kept_out if one.pattern is not None)
    return Judged(
        _together(decision, [one for _, one in decided]),
        (first, *rest),
        tuple((command.ref, one) for command, (_, one) in zip(push.commands, decided, strict=True)),
        _told(push, quiet),
        quiet,
        push.capabilities,
        "" if decision.passes else f"of {len(decided)} refs, `{command.ref}` ({command.change}) is the one that counts",
    )


def all_refused(judged: Judged, decision: "Decision", detail: str) -> Judged:
    """Refuse all of a push for what is no ref's."""
    return judged._replace(decision=decision, refs=tuple((ref, decision) for ref, _ in judged.refs), detail=detail)


def _told(push: "Push", quiet: frozenset[str]) -> tuple[str, ...]:
    """Say what a push does, ref by ref: none is kept out because another is, nor told because another is."""
    told = [
        f"{command.change} {command.ref} {old} {new}"
        for command, (old, new) in zip(push.commands, push.objects, strict=True)
        if command.ref not in quiet
    ]
    untold = len(push.commands) - len(told)
    return (*told, f"[{untold} more]") if untold else tuple(told)


def _openness(decision: "Decision") -> tuple[int, bool, int]:
    """Rank decisions: nobody is asked about a push of which a ref is denied."""
    return _STRICTER.index(decision.outcome), decision.asks, STRICTEST_FIRST.index(decision.verdict)


def together(*decisions: "Decision") -> "Decision":
    """Return one decision of several on one request."""
    return _together(min(decisions, key=_openness), decisions)


def _together(strictest: "Decision", decisions: "Iterable[Decision]") -> "Decision":
    """Give the strictest decision what all of them bring along: every limit, every approval, the earliest end."""
    every = list(decisions)
    held = strictest.asks
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


def report(judged: Judged, page: Page) -> Page | None:
    """Return a refusal as a push's client understands it; None: it wants none, and gets the page that others get.

    `page` is the refusal in text. Sideband (gitprotocol-common(5), gitprotocol-pack(5)): 1 carries the report, 2 what
    is shown to people.
    """
    if judged.capabilities.isdisjoint({"report-status", "report-status-v2"}):
        return None
    status = _line(b"unpack ok\n")
    status += b"".join(_line(f"ng {ref} {why}\n".encode()) for ref, why in _refusals(judged, page)) + b"0000"
    room = next((size for name, size in _PACKETS.items() if name in judged.capabilities), None)
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


def _refusals(judged: Judged, page: Page) -> "Iterator[tuple[str, str]]":
    """Say of each ref why it is refused; without a word of its own where the rules alone would have let it pass."""
    for ref, decision in judged.refs:
        if judged.decision.passes:
            yield ref, page.body.partition(b"\n")[0].decode("ascii")
        elif decision.passes:
            yield ref, "exeat: another ref of this push is refused"
        else:
            by = f" ({visible(decision.rules[0])})" if decision.rules else ""
            yield ref, f"exeat: {MEANING[decision.reason][0]}{by}"


def _line(data: bytes) -> bytes:
    return b"%04x%b" % (len(data) + 4, data)
