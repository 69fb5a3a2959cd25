"""The certificates that rules and settings name, read when they are: the gate could no longer reach them."""

from collections.abc import Iterable
from pathlib import Path

from rules.files import contents, why
from rules.grammar.document import Place
from rules.grammar.values import certificates
from rules.problems import Problem


def authorities(wanted: Iterable[tuple[str, str, Place]], problems: list[Problem]) -> dict[str, bytes]:
    """Read (path, key, place) for each that is named: PEM, by path. What can't be read is put into `problems`."""
    found: dict[str, bytes] = {}
    for path, key, place in wanted:
        try:
            found[path] = found.get(path) or certificates(contents(Path(path).resolve(strict=True)))
        except (OSError, RuntimeError, ValueError) as error:
            at = place.node
            problems.append(Problem(place.file, at.line, at.column, f"`{path}` can't be used as `{key}`: {why(error)}"))
    return found
