"""Approval request: one held attempt as a value that the worker, the registry and the store share.

Home of what a grant covers: a `key` has all that is known of an attempt, so what nobody is shown, nobody has approved.
Texts come from sandboxes, so each has a bound; surrogates stand for bytes that were no UTF-8 (PEP 383). A missing
member has its default; an unknown one is refused.
"""

import hashlib
import json
import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from msgspec import Meta, MsgspecError, Struct, convert, to_builtins
from msgspec.structs import astuple, replace

from rules.attempt import Protocol
from rules.decision import GrantScope
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.request.git_push import Push
    from proxy.request.request_head import Head
    from proxy.telemetry.events import Process
    from rules.attempt import Attempt
    from rules.decision import Decision, RequiredApproval


_MOST_ITEMS: Final = 4096
Text = Annotated[str, Meta(max_length=1 << 16)]  # characters
Texts = Annotated[tuple[Text, ...], Meta(max_length=_MOST_ITEMS)]
Line = Annotated[str, Meta(max_length=4096)]
Short = Annotated[str, Meta(max_length=256)]
Word = Annotated[str, Meta(max_length=128)]
Id = Annotated[str, Meta(max_length=64)]
Named = Annotated[str, Meta(min_length=1, max_length=256)]
NamedId = Annotated[str, Meta(min_length=1, max_length=64)]
NamedRule = Annotated[str, Meta(min_length=1, max_length=512)]
Digest = Annotated[str, Meta(min_length=1, max_length=128)]
Whole = Annotated[int, Meta(ge=0, le=1 << 62)]
Real = Annotated[float, Meta(ge=0, le=253_402_300_799)]  # seconds, or a time that has a date (seconds since 1970)


class MalformedMessageError(ValueError):
    """A message or a record that can't be read."""


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """An immutable value that goes from one process to another as a JSON object."""

    def packed(self) -> dict[str, Any]:
        """Return it as JSON."""
        found: dict[str, Any] = to_builtins(self)
        return found

    @classmethod
    def read(cls, value: object) -> Self:
        """Read what `packed` gave. Raises MalformedMessageError."""
        found: Self = read(value, cls)
        return found

    def _replace(self, **changes: Any) -> Self:
        return replace(self, **changes)


def read(value: object, of: Any, *, strict: bool = True) -> Any:
    """Read a value of JSON as a type; not `strict`: numbers may stand for others. Raises MalformedMessageError."""
    try:
        return convert(_without_lone_surrogates(value), of, strict=strict)
    except (MsgspecError, ValueError, RecursionError) as error:
        raise MalformedMessageError(f"no message or record of approvals: {error}") from error


def _without_lone_surrogates(value: object) -> object:
    """Return JSON without halves of surrogate pairs: it would make one character of two that were apart."""
    if isinstance(value, str):
        if value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value):
            return value
        return "".join(
            "\ufffd" if "\ud800" <= character <= "\udfff" and not "\udc80" <= character <= "\udcff" else character
            for character in value
        )
    if isinstance(value, dict):
        return {grant_key: _without_lone_surrogates(each) for grant_key, each in value.items()}
    return list(map(_without_lone_surrogates, value)) if isinstance(value, list | tuple) else value


_LARGEST: Final = 48 << 10  # bytes of JSON that a question may take; a packet is 128 KB
_CUTS: Final = ((4096, 64), (512, 16), (64, 4))  # characters of a text, items of a list
_NARROWEST: Final = (GrantScope.ATTEMPT, GrantScope.DESTINATION, GrantScope.RULE)
_Hash = Annotated[str, Meta(max_length=64)]
_Brief = Annotated[str, Meta(max_length=16)]
_Entry = Annotated[str, Meta(max_length=1 << 13)]
_NamedText = Annotated[str, Meta(min_length=1, max_length=1 << 16)]


class Kind(StrEnum):
    """Kind of attempt that is held."""

    CONNECTION = "connection"
    REQUEST = "request"
    PUSH = "push"
    UDP = "udp"
    COMMAND = "command"
    MERGE = "merge"  # of protected files into the workspace


class Ref(Message, frozen=True):
    """One ref of a push. Object names are hexadecimal, empty where nobody knows them yet (a wish)."""

    ref: _NamedText
    change: _Brief = ""  # create, update or delete
    old: _Hash = ""
    new: _Hash = ""
    quiet: bool = False  # a rule with `log: pattern` matches it: whoever decides sees it, and no file says it


class File(Message, frozen=True):
    """One path of a merge: its content before and after, as far as the card shows it."""

    path: _NamedText
    sha256: _Hash = ""  # of the content that is to be there; empty: it is to be removed, or has none
    change: _Brief = ""  # added, changed, mode or deleted
    was: _Entry = ""  # `file 0644, 12 bytes`, `link to TARGET`, `directory 0755`; empty: nothing
    now: _Entry = ""
    added: Whole | None = None  # lines; None: it has none, or too many to look at
    deleted: Whole | None = None


class Program(Message, frozen=True):
    """Process in the sandbox, as far as /proc shows it."""

    pid: Whole
    exe: Text
    argv: Texts = ()
    ancestors: Texts = ()  # executables, parent first


class Source(Message, frozen=True):
    """Untrusted source that the task has read from."""

    rule: NamedRule
    destination: Annotated[str, Meta(min_length=1, max_length=4096)]
    event: Word = ""  # id of the event that told of it


class Terms(Message, frozen=True, rename={"needed": "count", "by_self": "self", "lasts": "for"}):
    """`rules.decision.ApprovalTerms` as a message: the names are those of rule files, durations are in seconds."""

    by: Annotated[str, Meta(min_length=1, max_length=256)] | None
    needed: Annotated[int, Meta(ge=1, le=1 << 62)]
    by_self: bool
    hold: Real
    open: Real
    covers: GrantScope
    lasts: Real | None


class Rule(Message, frozen=True):
    """`rules.decision.Asks` as a message: one rule that holds the attempt."""

    rule: NamedRule
    digest: Digest
    terms: Terms
    why: Text = ""

    @classmethod
    def of(cls, asks: "RequiredApproval") -> Self:
        """Return a rule that asks as a message."""
        return cls(asks.rule, asks.digest, Terms(*asks.terms), asks.why)


def rules_of(asking: "Iterable[RequiredApproval]") -> tuple[Rule, ...]:
    """Return rules that ask as messages."""
    return tuple(map(Rule.of, asking))


class ApprovalRequest(Message, frozen=True):
    """One held attempt. Its texts come from the sandbox unescaped: escape them before showing them."""

    kind: Kind
    protocol: _Brief = ""  # rules.attempt.Protocol; empty for commands and merges
    host: Annotated[str, Meta(max_length=512)] = ""  # a name in its normal form, or an address
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    method: Short = ""
    path: Text = ""  # with its query, as it would be forwarded
    size: Whole | None = None  # bytes of the body; None: it doesn't say
    websocket: bool = False
    secrets: Texts = ()  # ids of those that the gate puts into it
    repo: Text = ""
    refs: Annotated[tuple[Ref, ...], Meta(max_length=_MOST_ITEMS)] = ()
    argv: Texts = ()
    files: Annotated[tuple[File, ...], Meta(max_length=_MOST_ITEMS)] = ()
    total: Whole = 0  # how many a merge changes: of more than are shown `digest` is all that is known
    digest: _Hash = ""  # SHA-256 of all that a merge puts in place, and of all that it puts it in the place of
    process: Program | None = None
    rules: Annotated[tuple[Rule, ...], Meta(max_length=64)] = ()
    revision: Word = ""  # of the policy
    event: Word = ""  # id of the event of the connection that this is a part of
    tainted_by: Annotated[tuple[Source, ...], Meta(max_length=_MOST_ITEMS)] = ()
    cut: bool = False  # whether more is done than is shown here: such a thing can't be approved by itself
    beforehand: bool = False  # whether it isn't tried yet: its objects, its body and its secrets nobody knows
    # What is told of its path, and nothing of its refs, where a rule says `log: pattern`
    pattern: _NamedText | None = None

    def redacted(self) -> Self:
        """Return the request without what `log: pattern` withholds from the journal; the approver sees it whole."""
        if self.pattern is not None:
            return self._replace(path=self.pattern, repo="", refs=())
        return self._replace(refs=tuple(ref for ref in self.refs if not ref.quiet))

    @property
    def withholds(self) -> bool:
        """Whether the journal may not have all of it (`log: pattern`)."""
        return self.pattern is not None or any(ref.quiet for ref in self.refs)

    @property
    def covers(self) -> GrantScope:
        """How wide an approval of this is at most: as the narrowest of its rules says."""
        return min((rule.terms.covers for rule in self.rules), key=_NARROWEST.index, default=GrantScope.ATTEMPT)

    def fitted(self) -> Self:
        """Return it small enough for one message, saying so where something that is done had to be left out.

        Raises MalformedMessageError if it can't be made so small.
        """
        found = self
        for longest, most in ((0, 0), *_CUTS):
            if longest:
                found = self._shortened(longest, most)
            if len(json.dumps(found.packed(), ensure_ascii=False).encode("utf-8", "surrogatepass")) <= _LARGEST:
                return found
        raise MalformedMessageError("too many rules hold this for one approval request")

    def _shortened(self, longest: int, most: int) -> Self:
        done = self._replace(
            method=self.method[:longest],
            path=self.path[:longest],
            repo=self.repo[:longest],
            refs=tuple(ref._replace(ref=ref.ref[:longest]) for ref in self.refs[:most]),
            argv=tuple(word[:longest] for word in self.argv[:most]),
            files=tuple(
                file._replace(path=file.path[:longest], was=file.was[:longest], now=file.now[:longest])
                for file in self.files[:most]
            ),
        )
        return done._replace(
            cut=self.cut or done != self,
            process=None if self.process is None else Program(
                self.process.pid,
                self.process.exe[:longest],
                tuple(word[:longest] for word in self.process.argv[:most]),
                tuple(exe[:longest] for exe in self.process.ancestors[:most]),
            ),
            pattern=None if self.pattern is None else self.pattern[:longest],
            rules=tuple(rule._replace(why=rule.why[:longest]) for rule in self.rules),
            tainted_by=tuple(
                source._replace(destination=source.destination[:longest]) for source in self.tainted_by[:most]
            ),
        )  # fmt: skip

    def line(self) -> str:
        """Say what is asked for in one line, as the sandbox has it; a query is left out."""
        place = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        path = self.path.partition("?")[0]
        match self.kind:
            case Kind.COMMAND:
                return shlex.join(self.argv)
            case Kind.MERGE:
                first = shlex.quote(self.files[0].path) if self.files else "nothing"
                others = max(self.total, len(self.files)) - 1
                more = f" and {others} more {'file' if others == 1 else 'files'}" if others > 0 else ""
                return f"change {first}{more}"
            case Kind.PUSH if not self.refs:
                return f"push to {place}"
            case Kind.PUSH:
                refs = ", ".join(f"{ref.change} {ref.ref}".strip() for ref in self.refs[:3])
                more = f" and {len(self.refs) - 3} more" if len(self.refs) > 3 else ""
                return f"push to {place}/{self.repo}: {refs}{more}"
            case Kind.REQUEST:
                return f"{self.method} {place}{path}" + (" as a websocket" if self.websocket else "")
            case Kind.CONNECTION | Kind.UDP:
                return f"{self.protocol or 'connect'} {place}"


def grant_key(question: ApprovalRequest, covers: GrantScope) -> str:
    """Return the key of an attempt at a scope. One grant serves all attempts with the same key.

    Besides, it is good for one task and for the rules that it names alone.
    """
    match covers:
        case GrantScope.RULE:
            return _hashed([covers])
        case GrantScope.DESTINATION:
            return _hashed([covers, question.protocol, question.host, question.port, *_apart(question)])
        case GrantScope.ATTEMPT:
            return _beforehand(question, body=question.size != 0) if question.beforehand else _attempt(question)


def grant_keys(question: ApprovalRequest) -> tuple[str, ...]:
    """Return all keys that cover an attempt. A grant with any of them serves it."""
    found = [grant_key(question, covers) for covers in _NARROWEST]
    if question.cut:
        del found[0]  # it does more than is known here
    elif question.kind in {Kind.PUSH, Kind.REQUEST} and not question.beforehand:
        found.append(_beforehand(question, body=True))
        if question.size == 0:
            found.append(_beforehand(question, body=False))
    return tuple(found)


def narrower(one: GrantScope, other: GrantScope) -> bool:
    """Whether one cover is narrower than the other."""
    return _NARROWEST.index(one) < _NARROWEST.index(other)


def _apart(question: ApprovalRequest) -> tuple[object, ...]:
    """Return what replaces the destination of commands (the program) and merges (the files)."""
    match question.kind:
        case Kind.COMMAND:
            return question.kind, question.argv[:1]
        case Kind.MERGE:
            return question.kind, question.total, sorted(file.path for file in question.files)
        case _:
            return ()


def _attempt(question: ApprovalRequest) -> str:
    return _hashed(
        [
            GrantScope.ATTEMPT, question.kind, question.protocol, question.host, question.port, question.method,
            question.path, question.size, question.websocket, sorted(question.secrets), question.repo,
            sorted(astuple(ref)[:4] for ref in question.refs), question.argv,
            sorted(map(astuple, question.files), key=json.dumps),
            question.total, question.digest,
        ]
    )  # fmt: skip


def _beforehand(question: ApprovalRequest, *, body: bool) -> str:
    """Return the key of a pre-request: all that is known before the attempt, for a push without objects.

    `body`: a request may have one, of any size.
    """
    place = question.protocol, question.host, question.port
    if question.kind is Kind.PUSH:
        refs = sorted((ref.ref, ref.change) for ref in question.refs)
        return _hashed(["beforehand", question.kind, *place, question.repo, refs])
    asked = question.method, question.path, question.websocket, question.repo
    return _hashed(["beforehand", question.kind, *place, *asked, body])


def _hashed(value: object) -> str:
    """Hash JSON, in which no two values of these shapes read alike."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def explain_unapprovable(decision: "Decision") -> str:
    """Explain why an approval could not allow the attempt; empty if it could."""
    if decision.reason is not Reason.APPROVAL_UNAVAILABLE or decision.passes or decision.needs_approval:
        return ""
    asks = ", ".join(f"`{rule}`" for rule in decision.rules)
    return f"no rule allows this, so an approval of what {asks} asks would have no effect"


def describe_connection(
    sources: "tuple[Source, ...]", attempt: "Attempt", decision: "Decision", process: "Process | None" = None
) -> ApprovalRequest:
    """Describe a connection, or a flow of datagrams, as an approval request."""
    if attempt.protocol is not Protocol.UDP:
        return _build_request(Kind.CONNECTION, sources, attempt, decision, process)
    question = _build_request(Kind.UDP, sources, attempt, decision, process)
    # Nobody waits on a line for a datagram: its client hears no at once, and what it sends again has the answer
    rules = tuple(rule._replace(terms=rule.terms._replace(hold=0.0)) for rule in question.rules)
    return question._replace(rules=rules)


def describe_request(  # noqa: PLR0917 - what is known of a request
    sources: "tuple[Source, ...]",
    attempt: "Attempt",
    decision: "Decision",
    head: "Head | None" = None,
    push: "Push | None" = None,
    process: "Process | None" = None,
    event: str = "",
    secrets: tuple[str, ...] = (),
    quiet: frozenset[str] = frozenset(),
) -> ApprovalRequest:
    """Describe one request, or a push with all its refs, as an approval request.

    `event` is the event of its connection. Without a `head` it is a pre-request. `secrets` are the ids of the secrets
    that the gate injects, `quiet` the refs that the journal must not have.
    """
    request = attempt.request
    assert request is not None
    found = _build_request(Kind.REQUEST, sources, attempt, decision, process)._replace(
        method=request.method,
        path=request.path,
        size=_size(head, body=request.body),
        websocket=request.websocket,
        secrets=secrets,
        event=event,
        beforehand=head is None,
    )
    if request.git is None:
        return found
    found = found._replace(repo=request.git.repo)
    if push is not None:
        refs = zip(push.commands, push.objects, strict=True)
        named = tuple(
            Ref(command.ref, command.change.value, old, new, command.ref in quiet) for command, (old, new) in refs
        )
        return found._replace(kind=Kind.PUSH, refs=named)
    if request.git.ref is not None:
        change = "" if request.git.change is None else request.git.change.value
        return found._replace(kind=Kind.PUSH, refs=(Ref(request.git.ref, change),))
    return found


def describe_program(
    sources: "tuple[Source, ...]",
    argv: tuple[str, ...],
    decision: "Decision",
    process: "Process | None" = None,
    *,
    whole: bool,
) -> ApprovalRequest:
    """Describe a program that is about to start as an approval request; not `whole`: `argv` is cut."""
    return ApprovalRequest(
        Kind.COMMAND,
        argv=argv,
        process=describe_process(process),
        rules=rules_of(decision.approval),
        revision=decision.revision,
        tainted_by=sources,
        cut=not whole,
    )


def describe_process(process: "Process | None") -> Program | None:
    """Return the process as a message."""
    return None if process is None else Program(process.pid, process.exe, process.argv, process.ancestors)


def _build_request(
    kind: Kind, sources: "tuple[Source, ...]", attempt: "Attempt", decision: "Decision", process: "Process | None"
) -> ApprovalRequest:
    return ApprovalRequest(
        kind,
        attempt.protocol.value,
        str(attempt.target),
        attempt.port,
        process=describe_process(process),
        rules=rules_of(decision.approval),
        revision=decision.revision,
        tainted_by=sources,
        pattern=decision.pattern,
    )


def _size(head: "Head | None", *, body: bool) -> int | None:
    """Return how many bytes of a body follow; None: nobody knows."""
    if not body:
        return 0
    if head is None:
        return None
    length = [value for name, value in head.fields if name.lower() == b"content-length"]
    if head.version == b"HTTP/2.0":
        return int(length[0]) if len(length) == 1 and length[0].isdigit() else None
    from proxy.request.request_head import UnclearError, body_size  # loaded where there is a head

    try:
        return body_size(head)
    except UnclearError:
        return None
