"""Protocol of a worker and the registry of approvals, as typed values: one JSON object a packet.

Each sandbox has its own socket pair, made with it, so no message names the sandbox (invariant 4). On a message that
can't be read (MalformedMessageError), a worker denies what it holds, and the registry closes the connection.

Every `Submit` gets exactly one `Answer`, unless the worker withdraws it. Before that come any number of `Pending`; a
new id in one means that other attempts used up the grant. The worker chooses the numbers, each once after a `Hello`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from proxy.approvals.approval_request import (
    ApprovalRequest,
    Digest,
    Id,
    Line,
    MalformedMessageError,
    Message,
    Named,
    NamedId,
    NamedRule,
    Real,
    Short,
    Source,
    Text,
    Texts,
    Whole,
    read,
)
from rules.verdicts import Reason, Verdict

VERSION: Final = 2
LONGEST_WHY: Final = 2000  # characters of what an agent says it wants


class Result(StrEnum):
    """How an ask ended; the first is what any trouble is."""

    UNAVAILABLE = "unavailable"  # nobody could be asked
    DENIED = "denied"
    TIMEOUT = "timeout"  # nobody answered while it was held; the question stays open for a retry
    FLOOD = "flood"  # too many questions are waiting
    WIDE = "wide"  # it does more than one approval request can show
    GRANTED = "granted"


class Tagged(Message, frozen=True, tag_field="type"):
    """Message with its kind in the member `type`."""


class Introduction(Message, frozen=True):
    """Whose pair of sockets this is: said once by whoever made the sandbox, outside of it."""

    sandbox: Named
    task: Named  # id: never used for another task
    name: Short
    labels: Annotated[Mapping[Text, Text], Meta(max_length=4096)]
    started_by: Annotated[int, Meta(ge=0, lt=1 << 32)]  # uid
    host: Short
    rule_files: Texts = ()
    workspace: Line = ""
    version: int = VERSION


class Hello(Tagged, frozen=True, tag="hello"):
    """The first word of every worker: what one before it still waits for is nobody's now."""

    version: int = VERSION


class Submit(Tagged, frozen=True, tag="ask"):
    """An attempt is held until this is answered. `ApprovalRequest.fitted` makes it small enough for one packet."""

    number: Whole
    question: ApprovalRequest


class Withdraw(Tagged, frozen=True, tag="drop"):
    """Nobody waits for an answer any more: the client gave up, or the policy changed."""

    number: Whole


class Tainted(Tagged, frozen=True, tag="tainted"):
    """The task is about to read from an untrusted source. Said before anything of it can reach the task."""

    source: Source


class BytesUsed(Tagged, frozen=True, tag="used"):
    """So many more bytes, both ways together, passed under a grant that has a budget of them."""

    grant: NamedId
    bytes: Whole


class EvaluatedAttempt(Message, frozen=True):
    """What the policy says of an attempt. The question has rules that ask where the verdict is `ask`, and else none."""

    question: ApprovalRequest
    verdict: Verdict
    reason: Reason
    rules: Texts = ()  # ids of those that decided


class PreRequest(Tagged, frozen=True, tag="wish"):
    """The agent asks for access beforehand."""

    number: Whole
    attempt: EvaluatedAttempt
    why: Annotated[str, Meta(max_length=LONGEST_WHY)] = ""  # the agent's words


class StatusQuery(Tagged, frozen=True, tag="look"):
    """The agent asks what became of a wish, or of anything that its task was held for; an empty id is of nothing."""

    number: Whole
    id: Id


type WorkerMessage = Hello | Submit | Withdraw | Tainted | BytesUsed | PreRequest | StatusQuery


class TaskTaint(Message, frozen=True):
    """What the task has done already."""

    tainted: bool
    tainted_by: Annotated[tuple[Source, ...], Meta(max_length=4096)] = ()


class TaskState(Tagged, frozen=True, tag="state"):
    """The answer to a hello."""

    done: TaskTaint


class Pending(Tagged, frozen=True, tag="pending"):
    """People are asked."""

    number: Whole
    approval: NamedId
    until: Real  # when the client's wait ends


class Granted(Message, frozen=True):
    """A rule that asks is satisfied, for this attempt: a use of the grant is taken already."""

    rule: NamedRule
    digest: Digest
    grant: NamedId
    bytes: Whole | None = None  # that may pass, with all else that passes under it; None: any


class Answer(Tagged, frozen=True, tag="answer"):
    """How an ask ended."""

    number: Whole
    result: Result
    approval: Id = ""  # of one that an earlier grant answered, that grant's approval
    by: Texts = ()  # who decided
    why: Line = ""  # what they said, or what was wrong
    grants: Annotated[tuple[Granted, ...], Meta(max_length=4096)] = ()


class GrantsEnded(Tagged, frozen=True, tag="over"):
    """These grants ended early or with their time: what still passes under them is cut. One used up doesn't cut."""

    grants: Texts


class RequestStatus(StrEnum):
    """What became of a wish or a question, as its task may know it."""

    UNKNOWN = "unknown"  # no question of this task
    REFUSED = "refused"  # it was not even put up: `why` says why not
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    ALLOWED = "allowed"  # nobody has to approve it


class RequestState(Message, frozen=True):
    """What a task is told of its own question."""

    standing: RequestStatus
    approval: Id = ""
    attempt: Text = ""  # one line
    by: Texts = ()
    why: Line = ""
    until: Real = 0.0  # when the question is given up, or the grant ends; 0: never, or nobody knows


class StatusReply(Tagged, frozen=True, tag="seen"):
    """The answer to a wish and to a look."""

    number: Whole
    state: RequestState


type RegistryMessage = TaskState | Pending | Answer | GrantsEnded | StatusReply


ROUNDS: Final = 8  # times that one attempt is asked about: what is granted may bring up what another layer asks
_REASONS: Final = {
    Result.UNAVAILABLE: Reason.APPROVAL_UNAVAILABLE,
    Result.DENIED: Reason.APPROVAL_DENIED,
    Result.TIMEOUT: Reason.APPROVAL_TIMEOUT,
    Result.FLOOD: Reason.APPROVAL_FLOOD,
    Result.WIDE: Reason.APPROVAL_UNAVAILABLE,
}


def reason_of(answer: Answer) -> Reason:
    """Return why what was asked about is refused."""
    return _REASONS.get(answer.result, Reason.APPROVAL_UNAVAILABLE)


def read_introduction(message: object) -> Introduction:
    """Read what `Introduction.packed` gave. Raises MalformedMessageError."""
    found = Introduction.read(message)
    _version(found.version)
    return found


def read_worker_message(message: object) -> WorkerMessage:
    """Read what a worker says. Raises MalformedMessageError."""
    found: WorkerMessage = read(message, WorkerMessage)
    match found:
        case Hello():
            _version(found.version)
        case Submit() if not found.question.rules:
            raise MalformedMessageError("a question without a rule that asks")
        case PreRequest() if bool(found.attempt.question.rules) != (found.attempt.verdict is Verdict.ASK):
            raise MalformedMessageError("a wish whose verdict and rules say different things")
    return found


def read_registry_message(message: object) -> RegistryMessage:
    """Read what the registry says. Raises MalformedMessageError."""
    found: RegistryMessage = read(message, RegistryMessage)
    match found:
        case Answer() if (found.result is Result.GRANTED) != bool(found.grants):
            raise MalformedMessageError("an answer that grants nothing, or grants while it refuses")
        case TaskState(TaskTaint(tainted=False, tainted_by=[_, *_])):
            raise MalformedMessageError("a state that is tainted by something and is not tainted")
    return found


def _version(said: int) -> None:
    if said != VERSION:
        raise MalformedMessageError(
            f"approvals protocol {VERSION} expected, and the other side uses {said}: restart Exeat"
        )
