"""A command's words, read by argparse in our own words."""

import argparse
from types import ModuleType
from typing import NoReturn, Self

from enforcer.cli import COMMANDS


class Parser(argparse.ArgumentParser):
    """Says in our words what is wrong, and ends the help with an example."""

    words: "list[str]"

    @classmethod
    def of(cls, name: str, module: ModuleType) -> Self:
        """Make the parser of one command, whose module says what it takes."""
        parser = cls(prog=f"exeat {name}", description=COMMANDS[name], allow_abbrev=False)
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
