"""The boxes and commands of all files: one box and its floor, and every command known by one id.

A command of any file holds back, whoever includes that file and whatever is kept of its rules.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.loading.sandbox_layers import SaidBox, together
from rules.problems import Problem
from rules.sandbox import Box, Command, Floor

if TYPE_CHECKING:
    from rules.loading.document import Node, Place
    from rules.loading.sandbox_schema import BoxRead

_MOST: Final = 1024


class BoxFile(NamedTuple):
    """What one file says of these; `shown` is what the user calls it."""

    shown: str
    layer: bool
    sandbox: "BoxRead | None"
    commands: "tuple[tuple[Command, Node], ...]"


def gather(
    files: Iterable[BoxFile], places: "Mapping[str, Place]", problems: list[Problem]
) -> tuple[Box, Floor, tuple[Command, ...]]:
    """Give the box, its floor and the commands; adds what is wrong to `problems`. `places`: of rules, by id."""
    said: list[SaidBox] = []
    nodes: dict[str, Mapping[str, Node]] = {}
    commands: dict[str, tuple[Command, str, Node]] = {}
    for file in files:
        if file.sandbox is not None:
            plain = next((each for each in said if not each.layer and not file.layer), None)
            if plain is not None:
                first = min(file.sandbox.nodes.values(), key=lambda node: (node.line, node.column), default=None)
                line, column = (first.line, first.column) if first is not None else (1, 1)
                message = f"`sandbox` is in `{plain.file}` already: only one file may have it, and files with `layer`"
                problems.append(Problem(file.shown, line, column, message))
                continue
            said.append(SaidBox(file.shown, file.layer, file.sandbox.box, file.sandbox.nodes))
            nodes[file.shown] = file.sandbox.nodes
        for command, node in file.commands:
            taken = commands.get(command.cite)
            place = places.get(command.cite)
            if taken is not None or place is not None:
                line = taken[2].line if taken is not None else place.node.line if place is not None else 1
                what = "command" if taken is not None else "rule"
                message = f"the id of this command is also that of the {what} in line {line}"
                problems.append(Problem(file.shown, node.line, node.column, message))
            commands.setdefault(command.cite, (command, file.shown, node))
    if len(commands) > _MOST:
        _, shown, node = list(commands.values())[_MOST]
        problems.append(Problem(shown, node.line, node.column, f"there are more than {_MOST} commands"))
    box, floor, objections = together(said)
    for objection in objections:
        node = nodes[objection.file][objection.field]
        problems.append(Problem(objection.file, node.line, node.column, objection.message))
    return box, floor, tuple(sorted((command for command, _, _ in commands.values()), key=lambda c: c.cite))
