"""A command's words, read by argparse; what is wrong with them is said in our own words."""

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Self

from enforcer.cli import COMMANDS


class Parser(argparse.ArgumentParser):
    """Reads a command's words, and ends the help with an example."""

    @classmethod
    def of(cls, name: str, module: ModuleType) -> Self:
        """Make the parser of one command, whose module says what it takes."""
        parser = cls(
            prog=f"exeat {name}",
            description=COMMANDS[name],
            allow_abbrev=False,
            formatter_class=_as_wide_as_the_screen,
            exit_on_error=False,
        )
        module.add_arguments(parser)
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
            arguments, left_over = parse(words)
        except argparse.ArgumentError as error:
            from enforcer.cli import misuse

            self.error(misuse.misspelt(self, words) or misuse.wrong(self, words, error))
        except InvalidChoiceError as error:
            from enforcer.cli import misuse

            self.error(misuse.misspelt(self, words) or misuse.not_a_choice(self.prog, error))
        if left_over:
            from enforcer.cli import misuse

            self.error(misuse.misspelt(self, words) or misuse.left_over(self.prog, left_over))
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise InvalidChoiceError(action, value)

    def format_help(self) -> str:
        """Return the help."""
        from enforcer.cli.examples import example

        return f"{super().format_help()}\nexample:\n  {example(self.prog)}\n"


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
