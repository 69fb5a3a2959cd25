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
    """Result of an approval request; any failure is `unavailable`."""

    UNAVAILABLE = "unavailable"  # nobody could be asked
    DENIED = "denied"
    TIMEOUT = "timeout"  # nobody answered while it was held; the question stays open for a retry
    FLOOD = "flood"  # too many questions are waiting
    WIDE = "wide"  # it does more than one approval request can show
    GRANTED = "granted"


class Tagged(Message, frozen=True, tag_field="type"):
    """Message with its kind in the member `type`."""


class Introduction(Message, frozen=True):
    """Introduces a sandbox's socket pair to the registry; sent once by the run host, outside the sandbox."""

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
    """First message of a worker. It ends the waits of the worker before it."""

    version: int = VERSION


class Submit(Tagged, frozen=True, tag="ask"):
    """Submits an approval request for a held attempt. `ApprovalRequest.fitted` makes it fit one packet."""

    number: Whole
    question: ApprovalRequest


class Withdraw(Tagged, frozen=True, tag="drop"):
    """Withdraws a request: the client left, or the policy changed."""

    number: Whole


class Tainted(Tagged, frozen=True, tag="tainted"):
    """Reports that the task is about to read from an untrusted source, before it receives anything."""

    source: Source


class BytesUsed(Tagged, frozen=True, tag="used"):
    """Reports bytes, of both directions together, that are about to pass under a grant with a byte budget."""

    grant: NamedId
    bytes: Whole


class EvaluatedAttempt(Message, frozen=True):
    """Attempt with the policy's verdict. `question.rules` is empty unless the verdict is `ask`."""

    question: ApprovalRequest
    verdict: Verdict
    reason: Reason
    rules: Texts = ()  # ids of those that decided


class PreRequest(Tagged, frozen=True, tag="wish"):
    """Pre-request: the agent requests access before it tries."""

    number: Whole
    attempt: EvaluatedAttempt
    why: Annotated[str, Meta(max_length=LONGEST_WHY)] = ""  # the agent's words


class StatusQuery(Tagged, frozen=True, tag="look"):
    """Queries the state of one of the task's requests; an empty id only tests the connection."""

    number: Whole
    id: Id


type WorkerMessage = Hello | Submit | Withdraw | Tainted | BytesUsed | PreRequest | StatusQuery


class TaskTaint(Message, frozen=True):
    """Taint of the task, as the registry stores it."""

    tainted: bool
    tainted_by: Annotated[tuple[Source, ...], Meta(max_length=4096)] = ()


class TaskState(Tagged, frozen=True, tag="state"):
    """Reply to `Hello`: the task's taint."""

    done: TaskTaint


class Pending(Tagged, frozen=True, tag="pending"):
    """Reports that a request is pending under this id."""

    number: Whole
    approval: NamedId
    until: Real  # when the client's wait ends


class Granted(Message, frozen=True):
    """Grant that satisfies one rule for this attempt; the use is already counted."""

    rule: NamedRule
    digest: Digest
    grant: NamedId
    bytes: Whole | None = None  # that may pass, with all else that passes under it; None: any


class Answer(Tagged, frozen=True, tag="answer"):
    """Reply to `Submit`: the result."""

    number: Whole
    result: Result
    approval: Id = ""  # of one that an earlier grant answered, that grant's approval
    by: Texts = ()  # who decided
    why: Line = ""  # what they said, or what was wrong
    grants: Annotated[tuple[Granted, ...], Meta(max_length=4096)] = ()


class GrantsEnded(Tagged, frozen=True, tag="over"):
    """Reports grants that were revoked or expired: the worker cuts their leases. Used-up grants are not sent."""

    grants: Texts


class RequestStatus(StrEnum):
    """Status of a request, as its task sees it."""

    UNKNOWN = "unknown"  # no question of this task
    REFUSED = "refused"  # it was not even put up: `why` says why not
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    ALLOWED = "allowed"  # nobody has to approve it


class RequestState(Message, frozen=True):
    """State of a request, as its task sees it."""

    standing: RequestStatus
    approval: Id = ""
    attempt: Text = ""  # one line
    by: Texts = ()
    why: Line = ""
    until: Real = 0.0  # when the question is given up, or the grant ends; 0: never, or nobody knows


class StatusReply(Tagged, frozen=True, tag="seen"):
    """Reply to `PreRequest` and `StatusQuery`."""

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
    """Return the reason of the denial that an answer causes."""
    return _REASONS.get(answer.result, Reason.APPROVAL_UNAVAILABLE)


def read_introduction(message: object) -> Introduction:
    """Read what `Introduction.packed` gave. Raises MalformedMessageError."""
    found = Introduction.read(message)
    _version(found.version)
    return found


def read_worker_message(message: object) -> WorkerMessage:
    """Read a worker's message. Raises MalformedMessageError."""
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
    """Read a registry's message. Raises MalformedMessageError."""
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
