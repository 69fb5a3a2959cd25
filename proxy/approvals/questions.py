"""What the gate asks people about: one attempt, as a value that both sides of the wire and the store share.

Home of what a grant covers: a `key` says what an approval is good for, and two attempts with one key are the same to
it. Everything that is known of what is done is in the key of an attempt: how long a body is, and which secrets it takes
along, no less than where it goes. What nobody shows, nobody has approved.
"""

import hashlib
import json
import shlex
from enum import StrEnum
from typing import Final, NamedTuple, Self

from proxy.approvals.fields import Fields, Malformed
from rules.decision import Asks
from rules.limits import ApprovalTerms, Covers

_MOST_RULES: Final = 64
_LARGEST: Final = 48 << 10  # bytes of JSON that a question may take; a packet is 128 KB
_CUTS: Final = ((4096, 64), (512, 16), (64, 4))  # characters of a text, items of a list
_NARROWEST: Final = (Covers.ATTEMPT, Covers.DESTINATION, Covers.RULE)


class Kind(StrEnum):
    """What is held."""

    CONNECTION = "connection"
    REQUEST = "request"
    PUSH = "push"
    UDP = "udp"
    COMMAND = "command"
    MERGE = "merge"  # of protected files into the workspace


class Ref(NamedTuple):
    """One ref of a push. Object names are hexadecimal, empty where nobody knows them yet (a wish)."""

    ref: str
    change: str = ""  # create, update or delete
    old: str = ""
    new: str = ""
    quiet: bool = False  # a rule with `log: pattern` matches it: whoever decides sees it, and no file says it


class File(NamedTuple):
    """One path of a merge: what stands there now, and what is to, as far as people are shown that."""

    path: str
    sha256: str = ""  # of the content that is to be there; empty: it is to be removed, or has none
    change: str = ""  # added, changed, mode or deleted
    was: str = ""  # `file 0644, 12 bytes`, `link to TARGET`, `directory 0755`; empty: nothing
    now: str = ""
    added: int | None = None  # lines; None: it has none, or too many to look at
    deleted: int | None = None


class Program(NamedTuple):
    """Who in the sandbox it is, as far as /proc said."""

    pid: int
    exe: str
    argv: tuple[str, ...] = ()
    ancestors: tuple[str, ...] = ()  # executables, parent first

    def packed(self) -> dict[str, object]:
        """Return it as JSON."""
        return {"pid": self.pid, "exe": self.exe, "argv": list(self.argv), "ancestors": list(self.ancestors)}


class Source(NamedTuple):
    """Something untrusted that the task read from."""

    rule: str
    destination: str
    event: str = ""  # id of the event that told of it


class Question(NamedTuple):
    """One attempt that is held. Texts are as the sandbox has them: escape them where they leave."""

    kind: Kind
    protocol: str = ""  # rules.attempt.Protocol; empty for commands and merges
    host: str = ""  # a name in its normal form, or an address
    port: int = 0
    method: str = ""
    path: str = ""  # with its query, as it would be forwarded
    size: int | None = None  # bytes of the body; None: it doesn't say
    websocket: bool = False
    secrets: tuple[str, ...] = ()  # ids of those that the gate puts into it
    repo: str = ""
    refs: tuple[Ref, ...] = ()
    argv: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    total: int = 0  # how many a merge changes: of more than are shown `digest` is all that is known
    digest: str = ""  # SHA-256 of all that a merge puts in place, and of all that it puts it in the place of
    process: Program | None = None
    rules: tuple[Asks, ...] = ()
    revision: str = ""  # of the policy
    event: str = ""  # id of the event of the connection that this is a part of
    tainted_by: tuple[Source, ...] = ()
    cut: bool = False  # whether more is done than is shown here: such a thing can't be approved by itself
    beforehand: bool = False  # whether it isn't tried yet: its objects, its body and its secrets nobody knows
    pattern: str | None = None  # what is told of its path, and nothing of its refs, where a rule says `log: pattern`

    def told(self) -> Self:
        """Return it as it may be written down: whoever decides on it sees more (`log: pattern`)."""
        if self.pattern is not None:
            return self._replace(path=self.pattern, repo="", refs=())
        return self._replace(refs=tuple(ref for ref in self.refs if not ref.quiet))

    @property
    def withholds(self) -> bool:
        """Whether there is more to it than may be written down."""
        return self.pattern is not None or any(ref.quiet for ref in self.refs)

    def packed(self) -> dict[str, object]:
        """Return it as JSON."""
        return {
            "kind": self.kind.value,
            "protocol": self.protocol,
            "host": self.host,
            "port": self.port,
            "method": self.method,
            "path": self.path,
            "size": self.size,
            "websocket": self.websocket,
            "secrets": list(self.secrets),
            "repo": self.repo,
            "refs": [ref._asdict() for ref in self.refs],
            "argv": list(self.argv),
            "files": [file._asdict() for file in self.files],
            "total": self.total,
            "digest": self.digest,
            "process": None if self.process is None else self.process.packed(),
            "rules": [packed_rule(rule) for rule in self.rules],
            "revision": self.revision,
            "event": self.event,
            "tainted_by": [source._asdict() for source in self.tainted_by],
            "cut": self.cut,
            "beforehand": self.beforehand,
            "pattern": self.pattern,
        }

    @classmethod
    def read(cls, value: object) -> Self:
        """Read what `packed` gave. Raises Malformed."""
        fields = Fields(value, "a question")
        found = cls(
            fields.choice("kind", Kind),
            fields.text("protocol", 16),
            fields.text("host", 512),
            fields.number("port", 0, 65535),
            fields.text("method", 256),
            fields.text("path"),
            fields.number_or_none("size"),
            fields.flag("websocket"),
            fields.texts("secrets"),
            fields.text("repo"),
            fields.list("refs", _read_ref),
            fields.texts("argv"),
            fields.list("files", _read_file),
            fields.number_or_none("total") or 0,
            fields.text("digest", 64),
            fields.inner("process", _read_program),
            fields.list("rules", read_rule, _MOST_RULES),
            fields.text("revision", 128),
            fields.text("event", 128),
            fields.list("tainted_by", read_source),
            fields.flag("cut"),
            fields.flag("beforehand"),
            fields.text_or_none("pattern"),
        )
        fields.done()
        return found

    @property
    def covers(self) -> Covers:
        """How wide an approval of this is at most: as the narrowest of its rules says."""
        return min((rule.terms.covers for rule in self.rules), key=_NARROWEST.index, default=Covers.ATTEMPT)

    def fitted(self) -> Self:
        """Return it small enough for one message, saying so where something that is done had to be left out.

        Raises Malformed if it can't be made so small.
        """
        found = self
        for longest, most in ((0, 0), *_CUTS):
            if longest:
                found = self._shortened(longest, most)
            if len(json.dumps(found.packed(), ensure_ascii=False).encode("utf-8", "surrogatepass")) <= _LARGEST:
                return found
        raise Malformed("this can't be asked about: it is held by too many rules")

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


def key(question: Question, covers: Covers) -> str:
    """Return what an approval of so wide a cover is good for: attempts with one key are covered alike.

    Besides, it is good for one task and for the rules that it names alone.
    """
    match covers:
        case Covers.RULE:
            return _hashed([covers])
        case Covers.DESTINATION:
            return _hashed([covers, question.protocol, question.host, question.port, *_apart(question)])
        case Covers.ATTEMPT:
            return _beforehand(question, body=question.size != 0) if question.beforehand else _attempt(question)


def keys(question: Question) -> tuple[str, ...]:
    """Return every key that covers an attempt: whichever a grant has, it serves."""
    found = [key(question, covers) for covers in _NARROWEST]
    if question.cut:
        del found[0]  # it does more than is known here
    elif question.kind in {Kind.PUSH, Kind.REQUEST} and not question.beforehand:
        found.append(_beforehand(question, body=True))
        if question.size == 0:
            found.append(_beforehand(question, body=False))
    return tuple(found)


def narrower(one: Covers, other: Covers) -> bool:
    """Whether one cover is narrower than the other."""
    return _NARROWEST.index(one) < _NARROWEST.index(other)


def _apart(question: Question) -> tuple[object, ...]:
    """Give what stands for a destination where there is none: a command's program, the files that are to change."""
    match question.kind:
        case Kind.COMMAND:
            return question.kind, question.argv[:1]
        case Kind.MERGE:
            return question.kind, question.total, sorted(file.path for file in question.files)
        case _:
            return ()


def _attempt(question: Question) -> str:
    return _hashed(
        [
            Covers.ATTEMPT, question.kind, question.protocol, question.host, question.port, question.method,
            question.path, question.size, question.websocket, sorted(question.secrets), question.repo,
            sorted(ref[:4] for ref in question.refs), question.argv, sorted(question.files, key=_in_order),
            question.total, question.digest,
        ]
    )  # fmt: skip


def _in_order(file: File) -> str:
    return json.dumps(file)  # of a file that is named twice, too


def _beforehand(question: Question, *, body: bool) -> str:
    """Hash what is asked for before it is tried (a wish) as far as that is known: a push without objects and request.

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


def packed_rule(rule: Asks) -> dict[str, object]:
    """Return a rule that asks as JSON; `terms` as a rule file has them, durations in seconds."""
    by, needed, by_self, hold, open_, covers, lasts = rule.terms
    terms = {
        "by": by,
        "count": needed,
        "self": by_self,
        "hold": hold,
        "open": open_,
        "covers": covers.value,
        "for": lasts,
    }
    return {"rule": rule.rule, "digest": rule.digest, "why": rule.why, "terms": terms}


def read_rule(value: object) -> Asks:
    """Read what `packed_rule` gave. Raises Malformed."""
    fields = Fields(value, "a rule")
    terms = Fields(fields.raw("terms"), "terms")
    rule, digest, why = fields.named("rule", 512), fields.named("digest", 128), fields.text("why")
    fields.done()
    found = ApprovalTerms(
        terms.text_or_none("by", 256),
        terms.number("count", 1),
        terms.flag("self"),
        terms.real("hold"),
        terms.real("open"),
        terms.choice("covers", Covers),
        terms.real_or_none("for"),
    )
    terms.done()
    return Asks(rule, digest, found, why)


def read_source(value: object) -> Source:
    """Read an untrusted source. Raises Malformed."""
    fields = Fields(value, "a source")
    found = Source(fields.named("rule", 512), fields.named("destination", 4096), fields.text("event", 128))
    fields.done()
    return found


def _read_ref(value: object) -> Ref:
    fields = Fields(value, "a ref")
    found = Ref(
        fields.named("ref", 1 << 16),
        fields.text("change", 16),
        fields.text("old", 64),
        fields.text("new", 64),
        fields.flag("quiet"),
    )
    fields.done()
    return found


def _read_file(value: object) -> File:
    fields = Fields(value, "a file")
    found = File(
        fields.named("path", 1 << 16),
        fields.text("sha256", 64),
        fields.text("change", 16),
        fields.text("was", 1 << 13),
        fields.text("now", 1 << 13),
        fields.number_or_none("added"),
        fields.number_or_none("deleted"),
    )
    fields.done()
    return found


def _read_program(value: object) -> Program:
    fields = Fields(value, "a process")
    found = Program(fields.number("pid"), fields.text("exe"), fields.texts("argv"), fields.texts("ancestors"))
    fields.done()
    return found
