"""Programs that need leave to run, as they are written: `commands`."""

from typing import Final

from rules.limits import Covers
from rules.loading.document import Node
from rules.loading.fields import Reader, slug
from rules.loading.keys import COMMAND_KEYS
from rules.loading.terms_schema import read_approval, read_for
from rules.problems import quoted
from rules.sandbox import Command
from rules.verdicts import Verdict

_MOST_WORDS: Final = 64


def read_command(reader: Reader, node: Node, name: str) -> Command | None:
    """Read one entry of `commands`, of a file that is called `name`; None if it is wrong, which has been told then."""
    before = len(reader.problems)
    fields = reader.mapping(node, "a command", COMMAND_KEYS)
    if fields is None:
        return None
    for key in reader.lacking(node, "a command", ("id", "run", "action"), COMMAND_KEYS):
        reader.complain(node, f"a command needs `{key}`")
    ident = reader.parsed(fields["id"], "id", slug) if "id" in fields else None
    words = reader.parsed(fields["run"], "run", _words) if "run" in fields else None
    action = reader.choice(fields["action"], "action", Verdict) if "action" in fields else None
    if action is Verdict.ALLOW:
        reader.complain(fields["action"], "a command is held back: `deny`, `ask` or `flag`; what none names may run")
    why = reader.text(fields["why"], "why") if "why" in fields else ""
    for_ = read_for(reader, fields["for"]) if "for" in fields else None
    approval = read_approval(reader, fields["approval"]) if "approval" in fields else None
    if "approval" in fields and action is not None and action is not Verdict.ASK:
        reader.complain(fields["approval"], f"`approval` belongs to commands that ask, and this is `{action}`")
    if approval is not None and approval.covers is Covers.DESTINATION:
        message = "a command has no destination: its approval `covers` the `attempt`, or the `rule`"
        reader.complain(fields["approval"], message)
    if ident is None or words is None or action is None or why is None or len(reader.problems) > before:
        return None
    return Command(ident, f"{name}:{ident}", words, action, why, for_, approval)


def _words(text: str) -> tuple[str, ...]:
    """Read a program's name or path and globs of its arguments, with spaces between; no shell reads it."""
    words = tuple(text.split())
    if not words or not text.isprintable():
        raise ValueError(f"{quoted(text)} has characters that don't show, or no word at all")
    if len(words) > _MOST_WORDS:
        raise ValueError(f"{quoted(text)} has more than {_MOST_WORDS} words")
    program = words[0]
    if "/" in program and not program.startswith("/"):
        raise ValueError(f"{quoted(program)} must be a program's name or its whole path, as in `/usr/bin/terraform`")
    return words
