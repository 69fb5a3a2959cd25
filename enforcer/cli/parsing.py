"""Command-line parser (argparse): declared arguments, and error messages in the words of Exeat."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from enforcer.cli.commands import COMMANDS, EXAMPLES, USAGES
from rules.problems import did_you_mean, quote

_TERMS: Final = frozenset({"--for", "--scope", "--covers", "--as-rule"})
_NO_TERMS: Final = ": a rejection has no terms; `exeat approvals revoke ID` lifts it"
_MAY_LACK: Final = (argparse.OPTIONAL, argparse.ZERO_OR_MORE)
_PATHS: Final = frozenset({"FILE", "DIR", "JOURNAL"})  # what stands for a path in the help is read as one


class Argument(NamedTuple):
    """One option or argument of a command, as `add_argument` takes it."""

    words: tuple[str, ...]
    how: Mapping[str, Any]


class Group(NamedTuple):
    """Options that the help has under a title of their own; without one, no two of them go together."""

    title: str
    arguments: "Sequence[Argument | Group]"


type Arguments = Sequence[Argument | Group]


def argument(words: str, value: str | tuple[str, ...], says: str, **more: Any) -> Argument:
    """Declare an option (`-f --follow`) or an argument.

    `value` is what it takes, as the help calls it: empty for nothing, a tuple for one of these words, `FILE...` for an
    option that may be given again. `more` goes to `add_argument` as it is.
    """
    how: dict[str, Any] = {"help": says + "; repeatable" * value.endswith("...") if isinstance(value, str) else says}
    if isinstance(value, tuple):
        how["choices"] = value
    elif value:
        how["metavar"] = value.removesuffix("...")
        how |= {"type": Path} if how["metavar"] in _PATHS else {}
        how |= {"action": "append", "default": []} if value.endswith("...") else {}
    elif words.startswith("-"):
        how["action"] = "store_true"
    return Argument(tuple(words.split()), how | more)


class _OldSpelling(argparse.Action):
    """Option under its old name: has the effect of the new one, and prints the new name on standard error."""

    def __init__(self, *, new: str, **how: Any) -> None:
        super().__init__(help=argparse.SUPPRESS, default=argparse.SUPPRESS, **how)
        self._new = new

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Set the value; a switch has none, and is on."""
        warn_renamed(option or "", self._new)
        setattr(namespace, self.dest, values if self.nargs is None else True)


def old_spelling(old: str, new: str, value: str = "") -> Argument:
    """Declare the old name of an option, which works for one release and is not in the help."""
    how: dict[str, Any] = {"metavar": value} if value else {"nargs": 0}
    how |= {"type": Path} if value in _PATHS else {}
    return Argument((old,), {"action": _OldSpelling, "new": new, "dest": new.lstrip("-").replace("-", "_"), **how})


def warn_renamed(old: str, new: str) -> None:
    """Print that a word of the command line has a new spelling."""
    print(f"exeat: `{old}` is now `{new}`; the next release no longer takes `{old}`", file=sys.stderr)


def metrics_option(of: str, default: str) -> Argument:
    """Declare `--metrics`; without an address it is `default`."""
    says = f"serve Prometheus metrics{of} (without an address: {default})"
    return argument("--metrics", "HOST:PORT", says, nargs="?", const=default)


def add_arguments(parser: argparse._ActionsContainer, arguments: Arguments) -> None:
    """Have a parser take these."""
    for each in arguments:
        if isinstance(each, Argument):
            parser.add_argument(*each.words, **each.how)
        elif each.title:
            add_arguments(parser.add_argument_group(each.title), each.arguments)
        else:
            add_arguments(parser.add_mutually_exclusive_group(), each.arguments)


FORMAT: Final = argument("--format", ("text", "json"), "output format", default="text")
RULES: Final = argument(
    "--rules", "FILE...", "rule file; several form one policy (default: ~/.config/exeat/rules.yaml)", type=str
)
LABEL: Final = argument("--label", "NAME=VALUE...", "label of the task, for rules and events")
JOURNAL: Final = argument("--journal", "DIR", "journal to read (default: $XDG_STATE_HOME/exeat/journal)")
WRITTEN_JOURNAL: Final = argument("--journal", "DIR", "journal to write (default: $XDG_STATE_HOME/exeat/journal)")
FORCE: Final = argument("--force", "", "overwrite FILE if it exists")
DEFAULT_METRICS: Final = "127.0.0.1:9464"


class Parser(argparse.ArgumentParser):
    """Reads a command's words, and ends the help with an example."""

    @classmethod
    def of(cls, name: str, arguments: Arguments) -> Self:
        """Make the parser of one command."""
        parser = cls(
            prog=f"exeat {name}",
            usage=USAGES.get(name),
            description=COMMANDS[name],
            allow_abbrev=False,
            formatter_class=_as_wide_as_the_screen,
            exit_on_error=False,
        )
        add_arguments(parser, arguments)
        return parser

    @property
    def actions(self) -> Sequence[argparse.Action]:
        """The options and arguments that it takes."""
        return self._actions

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Read a command's words; prints what is wrong with them and exits with 2.

        Options and names come in any order, but in front of words that are another program's, and around a `--`.
        """
        in_order = "--" in words or any(action.nargs == argparse.REMAINDER for action in self.actions)
        parse = self.parse_known_args if in_order else self.parse_known_intermixed_args
        try:
            arguments, rest = parse(words)
        except argparse.ArgumentError as error:
            self.error(describe_unknown_option(self, words) or describe_error(self, words, error))
        except InvalidChoiceError as error:
            self.error(describe_unknown_option(self, words) or describe_invalid_choice(self.prog, error))
        if rest:
            self.error(describe_unknown_option(self, words) or describe_extra_words(self.prog, rest))
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise InvalidChoiceError(action, value)

    def format_help(self) -> str:
        """Return the help."""
        return f"{super().format_help()}\nexample:\n  {_example(self.prog)}\n"


class InvalidChoiceError(Exception):
    """A word is none of the `choices` of an option or argument."""

    def __init__(self, action: argparse.Action, value: object) -> None:
        super().__init__(action, value)
        self.action, self.value = action, value


def _as_wide_as_the_screen(prog: str) -> argparse.HelpFormatter:
    """Return what formats help. Asked for each option, and without a width it has shutil look for one.

    That imports three ways to compress, as long as `exeat run` lets others wait for it.
    """
    return argparse.HelpFormatter(prog, width=_columns() - 2)


def _columns() -> int:
    """Return how wide the screen is, as `shutil.get_terminal_size` does."""
    if (wanted := os.environ.get("COLUMNS", "")).isdecimal() and int(wanted) > 0:
        return int(wanted)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


def describe_unknown_option(parser: Parser, words: Sequence[str]) -> str:
    """Name the first long option that the command doesn't have: it comes before anything else that is wrong then too.

    Empty: it has all of them.
    """
    known = {word for action in parser.actions for word in action.option_strings}
    shown = {word for action in parser.actions if action.help != argparse.SUPPRESS for word in action.option_strings}
    options = words[: words.index("--")] if "--" in words else words
    for word in (option.partition("=")[0] for option in options):
        if word.startswith("--") and word not in known:
            hint = _NO_TERMS if parser.prog == "exeat reject" and word in _TERMS else did_you_mean(word, shown)
            return f"{quote(word)} is not an option of `{parser.prog}`{hint}"
    return ""


def describe_error(parser: Parser, words: Sequence[str], error: argparse.ArgumentError) -> str:
    """Say what argparse has found; leaves the parser unfit for more words."""
    action = next((action for action in parser.actions if _name(action) == error.argument_name), None)
    if action is None:
        missing = [_called(action) for action in _missing(parser, words)]
        if not missing:
            return str(error)
        return (
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, as in `{_example(parser.prog)}`"
        )
    if action.nargs is None and error.__context__ is None:  # no value was there to convert
        value = f"{'an' if str(action.metavar)[0] in 'AEIOU' else 'a'} {action.metavar}"
        return f"`{_name(action)}` needs {'one of ' + _choices(action) if action.choices else value} after it"
    return str(error)


def describe_invalid_choice(prog: str, error: InvalidChoiceError) -> str:
    """Say that a word is none of those that there are, and which was probably meant."""
    action, word = error.action, str(error.value)
    choices = [str(choice) for choice in action.choices or ()]
    instead = did_you_mean(word, choices) or f": use one of {', '.join(map(quote, choices))}"
    where = f"`{_name(action)}`" if action.option_strings else f"`{prog}`"
    return f"invalid value {quote(word)} for {where}{instead}"


def describe_extra_words(prog: str, words: Sequence[str]) -> str:
    """Say that there are words which the command doesn't take."""
    if words[0].startswith("-"):
        return f"{quote(words[0])} is not an option of `{prog}`; `{prog} --help` lists them"
    return f"`{prog}` takes no more words, and {quote(' '.join(words))} is left over, unlike in `{_example(prog)}`"


def _missing(parser: Parser, words: Sequence[str]) -> list[argparse.Action]:
    """Return the required options and arguments that nobody gave: those that set nothing once none is required."""
    required = [action for action in parser.actions if action.required and action.nargs not in _MAY_LACK]
    for action in parser.actions:
        action.required, action.default = False, argparse.SUPPRESS
    with contextlib.redirect_stderr(io.StringIO()):  # the first attempt to read them has printed what there was
        given, _ = parser.parse_known_args(words)
    return [action for action in required if not hasattr(given, action.dest)]


def _name(action: argparse.Action) -> str:
    """Return what an ArgumentError calls it."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _called(action: argparse.Action) -> str:
    if action.choices:
        return f"one of {_choices(action)}"
    return f"`{' '.join((*action.option_strings[-1:], str(action.metavar)))}`"


def _choices(action: argparse.Action) -> str:
    return ", ".join(f"`{choice}`" for choice in action.choices or ())


def _example(prog: str) -> str:
    return EXAMPLES[prog.removeprefix("exeat ")]
