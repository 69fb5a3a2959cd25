"""Protocol of a worker and the registry of approvals, as typed values: one JSON object a packet.

The pair of sockets is one sandbox's, made with it, so neither side names itself (invariant 4). On anything that doesn't
read (Malformed) a worker denies what it holds, and the registry ends the connection.

Every `Ask` gets exactly one `Answer`, unless it was dropped, and before that any number of `Pending`: another id means
that others used up what was granted. Numbers are the worker's, each used once after a `Hello`.
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
    Malformed,
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
    WIDE = "wide"  # it does more than one question can show, and its approval would cover just that
    GRANTED = "granted"


class Tagged(Message, frozen=True, tag_field="type", tag=str.lower):
    """A message that says by `type` which one it is: its class, in lower case."""


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


class Hello(Tagged, frozen=True):
    """The first word of every worker: what one before it still waits for is nobody's now."""

    version: int = VERSION


class Ask(Tagged, frozen=True):
    """An attempt is held until this is answered. `ApprovalRequest.fitted` makes it small enough for one packet."""

    number: Whole
    question: ApprovalRequest


class Drop(Tagged, frozen=True):
    """Nobody waits for an answer any more: the client gave up, or the policy changed."""

    number: Whole


class Tainted(Tagged, frozen=True):
    """The task is about to read from an untrusted source. Said before anything of it can reach the task."""

    source: Source


class Used(Tagged, frozen=True):
    """So many more bytes, both ways together, passed under a grant that has a budget of them."""

    grant: NamedId
    bytes: Whole


class Attempted(Message, frozen=True):
    """What the policy says of an attempt. The question has rules that ask where the verdict is `ask`, and else none."""

    question: ApprovalRequest
    verdict: Verdict
    reason: Reason
    rules: Texts = ()  # ids of those that decided


class Wish(Tagged, frozen=True):
    """The agent asks for access beforehand."""

    number: Whole
    attempt: Attempted
    why: Annotated[str, Meta(max_length=LONGEST_WHY)] = ""  # the agent's words


class Look(Tagged, frozen=True):
    """The agent asks what became of a wish, or of anything that its task was held for; an empty id is of nothing."""

    number: Whole
    id: Id


type Word = Hello | Ask | Drop | Tainted | Used | Wish | Look


class Done(Message, frozen=True):
    """What the task has done already."""

    tainted: bool
    tainted_by: Annotated[tuple[Source, ...], Meta(max_length=4096)] = ()


class State(Tagged, frozen=True):
    """The answer to a hello."""

    done: Done


class Pending(Tagged, frozen=True):
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


class Answer(Tagged, frozen=True):
    """How an ask ended."""

    number: Whole
    result: Result
    approval: Id = ""  # of one that an earlier grant answered, that grant's approval
    by: Texts = ()  # who decided
    why: Line = ""  # what they said, or what was wrong
    grants: Annotated[tuple[Granted, ...], Meta(max_length=4096)] = ()


class Over(Tagged, frozen=True):
    """These grants ended early or with their time: what still passes under them is cut. One used up doesn't cut."""

    grants: Texts


class Standing(StrEnum):
    """What became of a wish or a question, as its task may know it."""

    UNKNOWN = "unknown"  # no question of this task
    REFUSED = "refused"  # it was not even put up: `why` says why not
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    ALLOWED = "allowed"  # nobody has to approve it


class WishState(Message, frozen=True):
    """What a task is told of its own question."""

    standing: Standing
    approval: Id = ""
    attempt: Text = ""  # one line
    by: Texts = ()
    why: Line = ""
    until: Real = 0.0  # when the question is given up, or the grant ends; 0: never, or nobody knows


class Seen(Tagged, frozen=True):
    """The answer to a wish and to a look."""

    number: Whole
    state: WishState


type Reply = State | Pending | Answer | Over | Seen


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
    """Read what `Introduction.packed` gave. Raises Malformed."""
    found = Introduction.read(message)
    _version(found.version)
    return found


def read_word(message: object) -> Word:
    """Read what a worker says. Raises Malformed."""
    found: Word = read(message, Word)
    match found:
        case Hello():
            _version(found.version)
        case Ask() if not found.question.rules:
            raise Malformed("a question without a rule that asks")
        case Wish() if bool(found.attempt.question.rules) != (found.attempt.verdict is Verdict.ASK):
            raise Malformed("a wish whose verdict and rules say different things")
    return found


def read_reply(message: object) -> Reply:
    """Read what the registry says. Raises Malformed."""
    found: Reply = read(message, Reply)
    match found:
        case Answer() if (found.result is Result.GRANTED) != bool(found.grants):
            raise Malformed("an answer that grants nothing, or grants while it refuses")
        case State(Done(tainted=False, tainted_by=[_, *_])):
            raise Malformed("a state that is tainted by something and is not tainted")
    return found


def _version(said: int) -> None:
    if said != VERSION:
        raise Malformed(f"this is version {VERSION} of what is said about approvals, the other side speaks {said}")
