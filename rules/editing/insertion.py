"""Edits rule files: adds a rule that allows an attempt, or an exemption from the rule that asks about it.

`AttemptToAllow` is the attempt, and `RuleFileText` finds where the rule goes in the file's text. `add_rule` inserts it
and compares the policies before and after: no other decision may change. The caller writes the file.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from rules.attempt import UNKNOWN_CALLER, Attempt, Caller, GitRequest, GitService, Protocol, RefChange, Request
from rules.diff.compare import DiffRow, compare
from rules.diff.statements import write_example
from rules.files import describe_error, read_file
from rules.loading.fields import make_slug
from rules.loading.load import Loaded, failures
from rules.matching.policy import Policy
from rules.ports import USUAL_PORTS
from rules.problems import RuleFileError
from rules.values.addresses import parse_host
from rules.values.names import InvalidNameError
from rules.values.paths import readings
from rules.verdicts import Reason, Verdict

_PLAIN: Final = re.compile(r"[A-Za-z0-9/][A-Za-z0-9/._-]*", re.ASCII)  # to YAML text, wherever it stands
_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null"})  # and to people something else
_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_MARK: Final = "\ufeff"
_BLOCK_SCALARS: Final = ("|", ">")


class Insertion(NamedTuple):
    """A text that goes in at an index."""

    at: int
    text: str


class InsertionError(Exception):
    """The text of the rule file has no place where an entry can be inserted."""


class RuleFileText:
    """The text of a rule file that was read, composed once more for the places of everything. Raises ValueError.

    `line_break` is the file's own.
    """

    def __init__(self, text: str) -> None:
        self._begin = _MARK if text.startswith(_MARK) else ""  # places are counted from behind it
        self.text = text = text.removeprefix(_MARK)
        self.line_break = "\r\n" if "\r\n" in text else "\n"
        try:
            root = yaml.compose(text, Loader=_LOADER)
        except yaml.YAMLError as error:
            raise ValueError("it is not YAML") from error
        self._root = root if isinstance(root, yaml.MappingNode) else None

    def with_all(self, insertions: Sequence[Insertion]) -> str:
        """Apply all insertions, each at its index in the original text; at one index in order."""
        pieces, done = [self._begin], 0
        for each in sorted(insertions, key=lambda each: each.at):
            pieces += [self.text[done : each.at], each.text]
            done = each.at
        return "".join([*pieces, self.text[done:]])

    def ids(self) -> set[str]:
        """List the ids of the file's rules and commands."""
        entries = [item for key in ("rules", "commands") for item in _items(self._value(self._root, key))]
        return {value.value for item in entries if (value := self._value(item, "id")) is not None}

    def has(self, ident: str) -> bool:
        """Whether a rule of that id is written here."""
        return any(_is_called(item, ident) for item in self._rules())

    def last(self) -> str:
        """Return the id of the last rule in the text."""
        found = [value.value for item in self._rules() if (value := self._value(item, "id")) is not None]
        if not found:
            raise InsertionError("it has no rule after which a new one can be added")
        return str(found[-1])

    def source(self, ident: str, key: str) -> str | None:
        """Return a rule's value under a key as text, if it is one flow value or scalar; else None."""
        value = self._value(self._rule(ident), key)
        if value is None:
            return None
        written = self.text[_start(value) : _end(value)]
        is_flow = not isinstance(value, yaml.CollectionNode) or value.flow_style
        if not is_flow or "\n" in written or (isinstance(value, yaml.ScalarNode) and value.style in _BLOCK_SCALARS):
            raise InsertionError(f"`{key}` of `{ident}` is written over several lines: write it in one")
        return written

    def after(self, ident: str, pairs: Sequence[tuple[str, str]]) -> Insertion:
        """Insert a rule with these keys after another, in its style."""
        listing, rule = self._value(self._root, "rules"), self._rule(ident)
        if listing is None or not isinstance(listing, yaml.SequenceNode):
            raise InsertionError("its `rules` is not a list")
        flow = f"{{{', '.join(f'{key}: {value}' for key, value in pairs)}}}"
        if listing.flow_style:
            return Insertion(_end(rule), f", {flow}")
        dash, column = _column(listing), _column(rule)
        begin = " " * dash + "-" + " " * (column - dash - 1)
        lines = [flow] if rule.flow_style else [f"{key}: {value}" for key, value in pairs]
        indented = [(" " * column if number else begin) + line for number, line in enumerate(lines)]
        return self._line(rule, indented)

    def exempting(self, ident: str, entry: str) -> list[Insertion]:
        """Add an entry to a rule's `except`, or add the key."""
        rule = self._rule(ident)
        listed = self._value(rule, "except")
        if listed is None:
            if rule.flow_style:
                return [Insertion(_end(rule.value[-1][1]), f", except: [{entry}]")]
            return [self._line(rule, [" " * _column(rule) + f"except: [{entry}]"])]
        if isinstance(listed, yaml.SequenceNode) and not listed.flow_style:
            return [self._line(listed, [" " * _column(listed) + f"- {entry}"])]
        if isinstance(listed, yaml.SequenceNode):
            if not listed.value:
                return [Insertion(_start(listed) + 1, entry)]
            return [Insertion(_end(listed.value[-1]), f", {entry}")]
        if isinstance(listed, yaml.MappingNode) and not listed.flow_style:
            raise InsertionError(f"`except` of `{ident}` is one mapping over several lines: make it a list first")
        return [Insertion(_start(listed), "["), Insertion(_end(listed), f", {entry}]")]

    def _line(self, node: yaml.Node, lines: Iterable[str]) -> Insertion:
        """Insert lines after the last one of a block node."""
        text = self.text
        last = _last(node)
        at = _end(last)
        if isinstance(last, yaml.ScalarNode) and last.style in _BLOCK_SCALARS:
            at = text.rfind("\n", 0, at) + 1 if at < len(text) or text.endswith("\n") else at
        else:
            found = text.find("\n", at)
            at = len(text) if found < 0 else found + 1
        begin = "" if not at or text[at - 1] == "\n" else self.line_break
        return Insertion(at, begin + "".join(line + self.line_break for line in lines))

    def _rules(self) -> list[yaml.Node]:
        return _items(self._value(self._root, "rules"))

    def _rule(self, ident: str) -> yaml.MappingNode:
        for item in self._rules():
            if isinstance(item, yaml.MappingNode) and _is_called(item, ident):
                return item
        raise InsertionError(f"there is no rule `{ident}` in it")

    @staticmethod
    def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
        if not isinstance(node, yaml.MappingNode):
            return None
        return next((value for name, value in node.value if name.value == key), None)


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _is_called(node: yaml.Node, ident: str) -> bool:
    return isinstance(node, yaml.MappingNode) and any(k.value == "id" and v.value == ident for k, v in node.value)


def _last(node: yaml.Node) -> yaml.Node:
    """Find the last thing that is written of a node: of a block the last of its entries, and so on."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node


def _start(node: yaml.Node) -> int:
    assert node.start_mark is not None
    return int(node.start_mark.index)


def _end(node: yaml.Node) -> int:
    assert node.end_mark is not None
    return int(node.end_mark.index)


def _column(node: yaml.Node) -> int:
    assert node.start_mark is not None
    return int(node.start_mark.column)


class AttemptToAllow(NamedTuple):
    """Attempt to allow, as an event or the caller gives it. An empty `method` means the whole connection.

    `path` is as the client sent it, with its query. `repo` is as in `GitRequest`. `refs` are those of a push, each with
    its change; without any the request is a fetch.
    """

    protocol: Protocol
    host: str
    port: int
    method: str = ""
    path: str = ""
    body: bool = False
    websocket: bool = False
    repo: str = ""
    refs: tuple[tuple[str, RefChange], ...] = ()
    caller: Caller = UNKNOWN_CALLER

    def attempts(self) -> tuple[Attempt, ...]:
        """Return its attempts: one, or one per ref. Raises InvalidName."""
        target = parse_host(self.host)
        return tuple(Attempt(self.protocol, target, self.port, each, *self.caller) for each in self._requests())

    def _requests(self) -> Iterator[Request | None]:
        if not self.method:
            yield None
            return
        head = Request(self.method, self.path, (("host", self.host),), self.body, self.websocket, credential=None)
        if not self.repo:
            yield head
            return
        service = GitService.PUSH if self.refs else GitService.FETCH
        for ref, change in self.refs or ((None, None),):
            git = GitRequest(service, self.repo, ref, change)
            yield Request(head.method, head.path, head.headers, head.body, git=git)

    def matching(self) -> dict[str, str]:
        """Return the keys of a rule for the attempt, each with its value as flow YAML.

        Raises ValueError if no rule can cover this attempt alone.
        """
        ports = str(self.port) if self.port == USUAL_PORTS.get(self.protocol) else f"{self.port}/{self.protocol}"
        keys = {"to": scalar(self.host), "ports": f"[{ports}]"}
        if self.repo:
            self._no_wildcard(self.repo, "the repository")
            keys["git"] = f"{{repos: [{scalar(self.repo)}], {self._git()}}}"
        elif self.method:
            keys["http"] = f"{{{', '.join(self._http())}}}"
        return keys

    def _git(self) -> str:
        for ref, _ in self.refs:
            self._no_wildcard(ref, "the ref")
        if not self.refs:
            return "fetch: true"
        refs = dict.fromkeys(scalar(ref) for ref, _ in self.refs)
        changes = dict.fromkeys(change.value for _, change in self.refs)
        return f"push: [{', '.join(refs)}], changes: [{', '.join(changes)}]"

    def _http(self) -> Iterator[str]:
        path = self.path.partition("?")[0]
        self._no_wildcard(path, "the path")
        if len(readings(path)) != 1:
            raise ValueError(f"servers read the path {scalar(path)} in more than one way")
        yield f"methods: [{scalar(self.method)}]"
        yield f"paths: [{scalar(path)}]"
        if self.body and self.method in {"GET", "HEAD"}:
            yield "body: true"
        if self.websocket:
            yield "websocket: true"

    def _no_wildcard(self, text: str, what: str) -> None:
        if "*" in text:
            raise ValueError(f"{what} has a `*`, which rules take for any text")


def scalar(text: str) -> str:
    """Write a text as YAML has it, in quotes where it could be taken for anything else."""
    plain = _PLAIN.fullmatch(text) and not text.endswith(":") and text.lower() not in _WORDS
    return text if plain else json.dumps(text)


type Reader = Callable[[Mapping[Path, bytes]], Loaded]

_KEPT: Final = ("for", "until", "limits", "tls", "ca", "idle_timeout", "trust", "scan", "log")  # of the ask
_MOST_ASKS: Final = 8


class EditError(Exception):
    """Why the file stays as it is, in a sentence."""


class EditedFile(NamedTuple):
    """A rule file as it would be. `rule` is the id of the rule that is new, as it is cited; empty: exempting is all."""

    path: Path
    data: bytes
    rule: str
    asks: tuple[str, ...]  # rules that no longer hold the attempt


def add_rule(read: Reader, path: Path, asks: Sequence[str], to_allow: AttemptToAllow, why_text: str = "") -> EditedFile:
    """Add a rule, or an exemption, that allows the attempt to the file at `path`. Raises EditError.

    `read` loads the policy in force, with other contents of some files (`rules.loading.load.read`); `asks` cites the
    rules that held it; if empty, no rule decided it, and the new rule becomes the file's last.
    The new text loads, passes the files' tests, and changes only decisions about `to_allow`: held or undecided before,
    and allowed now.
    """
    try:
        data = read_file(path.resolve(strict=True))
        before = read({})
        text = RuleFileText(data.decode())
        matching = to_allow.matching()
        attempts = to_allow.attempts()
    except RuleFileError as error:
        raise EditError(f"the rules are broken as they are: {error.problems[0]}") from error
    except OSError as error:
        raise EditError(f"`{error.filename or path}` can't be read: {describe_error(error)}") from error
    except (InvalidNameError, ValueError) as error:
        raise EditError(f"it can't be written as a rule: {describe_error(error)}") from error
    idents = _idents(before.policy, text, asks)
    _check_asked(before.policy, attempts, unruled=not asks)
    try:
        exempting = _exempting(before.policy, text, idents, matching)
        if exempting:
            after = _read(read, path, text.with_all(exempting))
            if all(after.policy.decide(attempt).may_send_now for attempt in attempts):
                return _checked(
                    before, after, text.with_all(exempting), EditedFile(path, b"", "", tuple(asks)), to_allow
                )
        ident = _fresh(text, to_allow.host)
        behind = idents[0] if idents else text.last()
        pairs = {"id": ident, **matching, **(_existing_keys(text, behind) if idents else {}), "action": "allow"}
        if idents and _needs_body(before.policy, to_allow):
            pairs["except"] = "[{http: {body: false}}]"
        if why_text:
            pairs["why"] = scalar(why_text)
        changed = text.with_all([*exempting, text.after(behind, list(pairs.items()))])
    except InsertionError as unplaceable:
        raise EditError(f"`{path}` can't be added to: {unplaceable}") from unplaceable
    after = _read(read, path, changed)
    known = {rule.id for rule in before.policy.rules}
    new = [rule.id for rule in after.policy.rules if rule.id not in known]
    cited = asks[0].partition(":")[0] + ":" + ident if asks else next(iter(new), ident)
    if not all(after.policy.decide(attempt).may_send_now for attempt in attempts):
        raise EditError("a rule of its own would not allow it: see `exeat explain`")
    return _checked(before, after, changed, EditedFile(path, b"", cited, tuple(asks)), to_allow)


def _idents(policy: Policy, text: RuleFileText, asks: Sequence[str]) -> list[str]:
    """Return the ids, in this file, of the rules that held the attempt."""
    if len(asks) > _MOST_ASKS:
        raise EditError(f"more than {_MOST_ASKS} rules ask about it")
    known = {rule.id for rule in policy.rules if rule.action is Verdict.ASK}
    for cited in asks:
        if cited not in known:
            raise EditError(f"no rule `{cited}` asks: only connections and requests can become a rule")
        if not text.has(cited.partition(":")[2]):
            raise EditError(f"`{cited}` is in another file: edit that file")
    return [cited.partition(":")[2] for cited in asks]


def _check_asked(policy: Policy, attempts: Sequence[Attempt], *, unruled: bool) -> None:
    decisions = [(attempt, policy.decide(attempt)) for attempt in attempts]
    blocked = [(attempt, decision) for attempt, decision in decisions if not decision.may_send_now]
    if not blocked:
        raise EditError("it is allowed already")
    for attempt, decision in blocked:
        if unruled:
            if decision.verdict is not Verdict.DENY or decision.reason is not Reason.NO_RULE:
                raise EditError(f"`{write_example(attempt)}` is now decided by a rule: {decision.reason}")
        elif not decision.needs_approval and decision.verdict is not Verdict.ASK:
            raise EditError(f"`{write_example(attempt)}` is no longer held for approval: {decision.reason}")


def _exempting(
    policy: Policy, text: RuleFileText, idents: Sequence[str], matching: Mapping[str, str]
) -> list[Insertion]:
    """Exempt the attempt from asks that aren't defaults: any other rule wins over a default."""
    defaults = {rule.id.partition(":")[2] for rule in policy.rules if rule.default}
    entry = f"{{{', '.join(f'{key}: {value}' for key, value in matching.items())}}}"
    found: list[Insertion] = []
    for ident in idents:
        if ident not in defaults:
            found += text.exempting(ident, entry)
    return found


def _needs_body(policy: Policy, to_allow: AttemptToAllow) -> bool:
    """Whether only requests with a body were held: a rule with `body: true` allows those without one too."""
    if not to_allow.body or not to_allow.method or to_allow.repo:
        return False
    decisions = [policy.decide(attempt) for attempt in to_allow._replace(body=False).attempts()]
    return not any(
        decision.may_send_now or decision.needs_approval or decision.verdict is Verdict.ASK for decision in decisions
    )


def _existing_keys(text: RuleFileText, ident: str) -> dict[str, str]:
    """Return the ask's keys that the new rule copies, such as `for`, `until` and `limits`."""
    keys = {key: text.source(ident, key) for key in _KEPT}
    return {key: value for key, value in keys.items() if value is not None}


def _fresh(text: RuleFileText, host: str) -> str:
    """Return an id that is unused in the file."""
    used_ids = text.ids()
    base = f"approved-{make_slug(host)}"[:56].rstrip("-")
    return next(i for i in (base, *(f"{base}-{number}" for number in range(2, len(used_ids) + 3))) if i not in used_ids)


def _read(read: Reader, path: Path, text: str) -> Loaded:
    try:
        loaded = read({path.resolve(strict=True): text.encode()})
    except RuleFileError as error:
        raise EditError(f"the file would be wrong then: {error.problems[0]}") from error
    failed = failures(loaded)
    if failed:
        raise EditError(f"{failed[0].message}")
    return loaded


def _checked(before: Loaded, after: Loaded, text: str, edited: EditedFile, to_allow: AttemptToAllow) -> EditedFile:
    """Compare the decisions before and after: only those about the attempt may differ."""
    compared = compare(before.policy, after.policy)
    if compared.settings or not compared.complete:
        raise EditError("these rules are too many to compare before and after: edit the file by hand")
    for row in compared.rows:
        if not (_is_meant(row, to_allow) if edited.asks else _is_new(row, to_allow)):
            was, now = row.was.verdict, row.now.verdict
            raise EditError(f"more would change: `{write_example(row.attempt)}` was {was} and would be {now}")
    return edited._replace(data=text.encode())


def _is_meant(row: DiffRow, to_allow: AttemptToAllow) -> bool:
    """Whether a row is about the attempt that was held, and it is allowed now.

    Or about uninspected bytes at its destination: they could be the exempt ones, so no rule holds them any more.
    """
    if not _is_there(row, to_allow) or row.was.verdict != Verdict.ASK:
        return False
    return row.now.verdict == Verdict.DENY or _is_the_same(row, to_allow)


def _is_new(row: DiffRow, to_allow: AttemptToAllow) -> bool:
    """Whether a row is about attempts that no rule decided before, and that are allowed now."""
    if not _is_there(row, to_allow) or row.was.verdict != Verdict.DENY or row.was.reason is not Reason.NO_RULE:
        return False
    whole = not to_allow.method and row.attempt.protocol is to_allow.protocol
    return row.now.verdict == Verdict.ALLOW and (whole or _is_the_same(row, to_allow))


def _is_there(row: DiffRow, to_allow: AttemptToAllow) -> bool:
    return (str(row.attempt.target), row.attempt.port) == (to_allow.host, to_allow.port)


def _is_the_same(row: DiffRow, to_allow: AttemptToAllow) -> bool:
    """Whether a row allows no more of its destination than the attempt to allow."""
    attempt, request = row.attempt, row.attempt.request
    if to_allow.protocol is Protocol.TCP:
        return True  # any bytes, so requests too
    if attempt.protocol is not to_allow.protocol:
        return False
    if request is None:
        return True  # of an inspected connection each request is decided by itself
    if not to_allow.repo:
        return request.method == to_allow.method and readings(request.path) == readings(to_allow.path)
    git = request.git
    if git is None or git.repo != to_allow.repo or (git.service is GitService.PUSH) is not bool(to_allow.refs):
        return False
    return git.ref is None or (git.ref, git.change) in to_allow.refs
