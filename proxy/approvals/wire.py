"""What a worker and the registry of approvals say to each other, as typed values: one JSON object a packet.

The pair of sockets is one sandbox's, made by whoever made the sandbox, so neither side says who it is (invariant 4).
`read_word` reads what a worker says, `read_reply` what the registry says; both raise Malformed for anything else, and
then the other side is not to be trusted: a worker denies what it holds, the registry ends the connection.

The registry answers every `Ask` with exactly one `Answer`, unless it was dropped. Before that come any number of
`Pending`: one when people are asked, and another with another id if what they granted was used up by others that had
asked for the same. Numbers are the worker's, each used once after a `Hello`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from proxy.approvals.fields import Fields, Malformed, only
from proxy.approvals.questions import Question, Source, read_source
from rules.verdicts import Reason, Verdict

__all__ = [
    "Answer",
    "Ask",
    "Drop",
    "Granted",
    "Hello",
    "Introduction",
    "Look",
    "Malformed",
    "Over",
    "Pending",
    "Reply",
    "Result",
    "Seen",
    "Standing",
    "State",
    "Tainted",
    "Used",
    "Wish",
    "WishState",
    "Word",
    "read_introduction",
    "read_reply",
    "read_word",
]
VERSION: Final = 1
LONGEST_WHY: Final = 2000  # characters of what an agent says it wants


class Result(StrEnum):
    """How an ask ended; the first is what any trouble is."""

    UNAVAILABLE = "unavailable"  # nobody could be asked
    DENIED = "denied"
    TIMEOUT = "timeout"  # nobody answered while it was held; the question stays open for a retry
    FLOOD = "flood"  # too many questions are waiting
    WIDE = "wide"  # it does more than one question can show, and its approval would cover just that
    GRANTED = "granted"


class Introduction(NamedTuple):
    """Whose pair of sockets this is: said once by whoever made the sandbox, outside of it."""

    sandbox: str
    task: str  # id: never used for another task
    name: str
    labels: Mapping[str, str]
    started_by: int  # uid
    host: str
    rule_files: tuple[str, ...] = ()
    workspace: str = ""

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {
            "introduce": VERSION,
            **self._asdict(),
            "labels": dict(self.labels),
            "rule_files": list(self.rule_files),
        }


class Hello(NamedTuple):
    """The first word of every worker: what one before it still waits for is nobody's now."""

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"hello": VERSION}


class Ask(NamedTuple):
    """An attempt is held until this is answered."""

    number: int
    question: Question

    def packed(self) -> dict[str, object]:
        """Return it as a message; make sure with `Question.fitted` that it is small enough for one packet."""
        return {"ask": self.number, "question": self.question.packed()}


class Drop(NamedTuple):
    """Nobody waits for an answer any more: the client gave up, or the policy changed."""

    number: int

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"drop": self.number}


class Tainted(NamedTuple):
    """The task is about to read from an untrusted source. Said before anything of it can reach the task."""

    source: Source

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"tainted": self.source._asdict()}


class Used(NamedTuple):
    """So many more bytes, both ways together, passed under a grant that has a budget of them."""

    grant: str
    bytes: int

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"used": self.grant, "bytes": self.bytes}


class Wish(NamedTuple):
    """The agent asks for access beforehand, and what the policy says of that attempt.

    Of a verdict of `ask` the question has the rules that ask; of any other it has none.
    """

    number: int
    question: Question
    verdict: Verdict
    reason: Reason
    rules: tuple[str, ...] = ()  # ids of those that decided
    why: str = ""  # the agent's words

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        attempt = {
            "question": self.question.packed(),
            "verdict": self.verdict.value,
            "reason": self.reason.value,
            "rules": list(self.rules),
        }
        return {"wish": self.number, "attempt": attempt, "why": self.why}


class Look(NamedTuple):
    """The agent asks what became of a wish, or of anything that its task was held for; an empty id is of nothing."""

    number: int
    id: str

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"look": self.number, "id": self.id}


type Word = Hello | Ask | Drop | Tainted | Used | Wish | Look


class State(NamedTuple):
    """The answer to a hello: what the task has done already."""

    tainted: bool
    tainted_by: tuple[Source, ...] = ()

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"state": {"tainted": self.tainted, "tainted_by": [source._asdict() for source in self.tainted_by]}}


class Pending(NamedTuple):
    """People are asked."""

    number: int
    approval: str
    until: float  # seconds since 1970: when the client's wait ends

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"pending": self.number, "approval": self.approval, "until": self.until}


class Granted(NamedTuple):
    """A rule that asks is satisfied, for this attempt: a use of the grant is taken already."""

    rule: str
    digest: str
    grant: str
    bytes: int | None = None  # that may pass, with all else that passes under it; None: any


class Answer(NamedTuple):
    """How an ask ended."""

    number: int
    result: Result
    approval: str = ""  # id; of one that an earlier grant answered, that grant's approval
    by: tuple[str, ...] = ()  # who decided
    why: str = ""  # what they said, or what was wrong
    grants: tuple[Granted, ...] = ()

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {
            "answer": self.number,
            "result": self.result.value,
            "approval": self.approval,
            "by": list(self.by),
            "why": self.why,
            "grants": [grant._asdict() for grant in self.grants],
        }


class Over(NamedTuple):
    """These grants ended early or with their time: what still passes under them is cut. One used up doesn't cut."""

    grants: tuple[str, ...]

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"over": list(self.grants)}


class Standing(StrEnum):
    """What became of a wish or a question, as its task may know it."""

    UNKNOWN = "unknown"  # no question of this task
    REFUSED = "refused"  # it was not even put up: `why` says why not
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    ALLOWED = "allowed"  # nobody has to approve it


class WishState(NamedTuple):
    """What a task is told of its own question."""

    standing: Standing
    approval: str = ""
    attempt: str = ""  # one line
    by: tuple[str, ...] = ()
    why: str = ""
    until: float = (
        0.0  # seconds since 1970: when the question is given up, or the grant ends; 0: never, or nobody knows
    )

    def packed(self) -> dict[str, object]:
        """Return it as JSON."""
        return {**self._asdict(), "standing": self.standing.value, "by": list(self.by)}


class Seen(NamedTuple):
    """The answer to a wish and to a look."""

    number: int
    state: WishState

    def packed(self) -> dict[str, object]:
        """Return it as a message."""
        return {"seen": self.number, "state": self.state.packed()}


type Reply = State | Pending | Answer | Over | Seen


def read_introduction(message: Mapping[str, object]) -> Introduction:
    """Read what `Introduction.packed` gave. Raises Malformed."""
    fields = Fields(message, "an introduction")
    _version(fields, "introduce")
    found = Introduction(
        fields.named("sandbox"),
        fields.named("task"),
        fields.text("name", 256),
        fields.labels("labels"),
        fields.number("started_by", 0, (1 << 32) - 1),
        fields.text("host", 256),
        fields.texts("rule_files"),
        fields.text("workspace", 4096),
    )
    fields.done()
    return found


def read_word(message: Mapping[str, object]) -> Word:
    """Read what a worker says. Raises Malformed."""
    fields = Fields(message, "a word")
    found: Word
    match only(fields, ("hello", "ask", "drop", "tainted", "used", "wish", "look"), "a word"):
        case "hello":
            _version(fields, "hello")
            found = Hello()
        case "ask":
            found = Ask(fields.number("ask"), Question.read(fields.raw("question")))
            if not found.question.rules:
                raise Malformed("a question without a rule that asks")
        case "drop":
            found = Drop(fields.number("drop"))
        case "tainted":
            found = Tainted(read_source(fields.raw("tainted")))
        case "used":
            found = Used(fields.named("used", 64), fields.number("bytes"))
        case "wish":
            found = _read_wish(fields)
        case _:
            found = Look(fields.number("look"), fields.text("id", 64))
    fields.done()
    return found


def read_reply(message: Mapping[str, object]) -> Reply:
    """Read what the registry says. Raises Malformed."""
    fields = Fields(message, "a reply")
    found: Reply
    # A `seen` has a `state` of its own.
    kind = "seen" if fields.has("seen") else only(fields, ("state", "pending", "answer", "over"), "a reply")
    match kind:
        case "pending":
            found = Pending(fields.number("pending"), fields.named("approval", 64), fields.real("until"))
        case "answer":
            found = Answer(
                fields.number("answer"),
                fields.choice("result", Result),
                fields.text("approval", 64),
                fields.texts("by"),
                fields.text("why", 4096),
                fields.list("grants", _read_granted),
            )
            if (found.result is Result.GRANTED) != bool(found.grants):
                raise Malformed("an answer that grants nothing, or grants while it refuses")
        case "over":
            found = Over(fields.texts("over"))
        case "seen":
            found = Seen(fields.number("seen"), _read_wish_state(fields.raw("state")))
        case _:
            state = Fields(fields.raw("state"), "a state")
            found = State(state.flag("tainted"), state.list("tainted_by", read_source))
            state.done()
            if found.tainted_by and not found.tainted:
                raise Malformed("a state that is tainted by something and is not tainted")
    fields.done()
    return found


def _version(fields: Fields, key: str) -> None:
    if (said := fields.number(key)) != VERSION:
        raise Malformed(f"this is version {VERSION} of what is said about approvals, the other side speaks {said}")


def _read_wish(fields: Fields) -> Wish:
    attempt = Fields(fields.raw("attempt"), "an attempt")
    found = Wish(
        fields.number("wish"),
        Question.read(attempt.raw("question")),
        attempt.choice("verdict", Verdict),
        attempt.choice("reason", Reason),
        attempt.texts("rules"),
        fields.text("why", LONGEST_WHY),
    )
    attempt.done()
    if bool(found.question.rules) != (found.verdict is Verdict.ASK):
        raise Malformed("a wish whose verdict and rules say different things")
    return found


def _read_granted(value: object) -> Granted:
    fields = Fields(value, "a grant")
    found = Granted(
        fields.named("rule", 512),
        fields.named("digest", 128),
        fields.named("grant", 64),
        fields.number_or_none("bytes"),
    )
    fields.done()
    return found


def _read_wish_state(value: object) -> WishState:
    fields = Fields(value, "the state of a question")
    found = WishState(
        fields.choice("standing", Standing),
        fields.text("approval", 64),
        fields.text("attempt"),
        fields.texts("by"),
        fields.text("why", 4096),
        fields.real("until"),
    )
    fields.done()
    return found
