"""`make trace`: print how straight the product is, and write it to build/trace.json.

Three flows (`flows.py`), the circles of imports (`imports.py`), and the lines of production code.
"""

import argparse
import collections
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType

from tests.trace import flows, imports
from tests.trace.recording import FLOORS, PROJECT, Call, files

_KINDS = {"at the top": ("top",), "with lazy ones": ("top", "lazy"), "with TYPE_CHECKING": imports.KINDS}


def main(words: list[str]) -> int:
    """Run the flows and print what was found."""
    parser = argparse.ArgumentParser(prog="make trace")
    parser.add_argument("--files", choices=("request", "connection", "run"), help="list the files of a flow")
    parser.add_argument("--functions", action="store_true", help="with the functions that are called in each")
    parser.add_argument("--imports", action="store_true", help="print imports and lines alone, and run nothing")
    options = parser.parse_args(words)
    if not options.imports:
        recorded = flows.record()
        found = {name: flows.figures(calls)._asdict() for name, calls in recorded.items()}
        imported = {name: len({call.file for call in calls if call.is_import}) for name, calls in recorded.items()}
        rows = [(name, *figures.values(), imported[name]) for name, figures in found.items()]
        _table([("", *flows.Figures._fields, "(imported)"), *rows])
        (PROJECT / "build").mkdir(exist_ok=True)
        (PROJECT / "build/trace.json").write_text(json.dumps(found, indent=2) + "\n")
        if options.files:
            _list(recorded[options.files], functions=options.functions)
    _circles()
    _lines()
    return 0


def _list(calls: Iterable[Call], *, functions: bool) -> None:
    """Print the files of a flow with the calls of each."""
    counts: dict[str, collections.Counter[int]] = {}
    for call in (call for call in calls if not call.is_import):
        counts.setdefault(call.file, collections.Counter())[call.line] += 1
    print()
    for file, lines in sorted(counts.items()):
        print(f"{lines.total():>6}  {file}")
        names = _functions(PROJECT / file) if functions else {}
        for line, name in sorted(names.items()):
            if line in lines:
                print(f"{lines[line]:>12}  {name}")


def _functions(path: Path) -> dict[int, str]:
    """Return the name of what is defined at each line of a file."""

    def below(code: CodeType) -> Iterable[CodeType]:
        yield code
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from below(constant)

    return {code.co_firstlineno: code.co_qualname for code in below(compile(path.read_text(), path, "exec"))}


def _circles() -> None:
    found = imports.imports()
    for title, search in (("between folders", imports.between_folders), ("inside a folder", imports.inside_folders)):
        print(f"\nimport circles {title}" + (f" of more than {imports.LARGEST} files" * ("inside" in title)))
        for name, kinds in _KINDS.items():
            circles = search(found, kinds)
            print(f"  {name}: {len(circles)}", *(f"    {', '.join(circle)}" for circle in circles), sep="\n")


def _lines() -> None:
    python = {floor: sum(_count(PROJECT / name) for name in files() if name.startswith(floor)) for floor in FLOORS}
    compiled = sum(map(_count, (path for floor in FLOORS for path in (PROJECT / floor).rglob("*.[ch]"))))
    print("\nlines of production code")
    _table([("  Python", *FLOORS, "all", "C"), ("", *python.values(), sum(python.values()), compiled)])


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def _table(rows: list[tuple[object, ...]]) -> None:
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        right = (f"{value!s:>{width}}" for value, width in zip(others, widths[1:], strict=True))
        print(f"{first!s:<{widths[0]}}", *right, sep="  ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
