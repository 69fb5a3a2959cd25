"""A command's words, read by argparse in our own words."""

import argparse
import os
import sys
from types import ModuleType
from typing import NoReturn, Self

from enforcer.cli import COMMANDS


class Parser(argparse.ArgumentParser):
    """Says in our words what is wrong, and ends the help with an example."""

    words: "list[str]"

    @classmethod
    def of(cls, name: str, module: ModuleType) -> Self:
        """Make the parser of one command, whose module says what it takes."""
        parser = cls(
            prog=f"exeat {name}", description=COMMANDS[name], allow_abbrev=False, formatter_class=_as_wide_as_the_screen
        )
        parser.words = []
        module.add_arguments(parser)
        return parser

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit 2."""
        from enforcer.cli.misuse import misuse

        super().error(misuse(self.prog, self._actions, self.words, message))

    def format_help(self) -> str:
        """Return the help."""
        from enforcer.cli.examples import example

        return f"{super().format_help()}\nexample:\n  {example(self.prog)}\n"


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
