"""Find import circles between the folders of the production code, and between the files of one folder.

A circle is a strongly connected component of the graph of imports. Imports at the top of a file are told from those
inside functions (lazy) and from those under TYPE_CHECKING, which nothing executes.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.trace.recording import PROJECT, files

KINDS = ("top", "lazy", "types")
LARGEST = 2  # files of one folder that may import each other


class Import(NamedTuple):
    """One file imports another one of ours."""

    importer: str
    imported: str
    kind: str


def imports(project: Path = PROJECT) -> list[Import]:
    """Return every import of a production file by another."""
    ours = set(files(project))
    found = {
        Import(file, imported, kind)
        for file in ours
        for name, kind in _names(ast.parse((project / file).read_text()).body, "top")
        if (imported := _file(name, ours)) and imported != file
    }
    return sorted(found)


def between_folders(found: Iterable[Import], kinds: Iterable[str] = KINDS) -> list[list[str]]:
    """Return the circles of folders."""
    pairs = {(folder(each.importer), folder(each.imported)) for each in found if each.kind in kinds}
    return circles({(importer, imported) for importer, imported in pairs if importer != imported})


def inside_folders(found: Iterable[Import], kinds: Iterable[str] = KINDS) -> list[list[str]]:
    """Return the circles of more than two files of one folder."""
    pairs = {(each.importer, each.imported) for each in found if each.kind in kinds}
    within = {(importer, imported) for importer, imported in pairs if folder(importer) == folder(imported)}
    return [circle for circle in circles(within) if len(circle) > LARGEST]


def folder(file: str) -> str:
    """Return the folder that a file lies in."""
    return str(Path(file).parent)


def circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node: who reaches whom, and is reached by it."""
    following: dict[str, set[str]] = {}
    for source, target in edges:
        following.setdefault(source, set()).add(target)
    reached = {node: _reachable(node, following) for node in following}
    found = {frozenset(other for other in reached[node] if node in reached.get(other, ())) for node in following}
    return sorted(sorted(circle) for circle in found if len(circle) > 1)


def _reachable(node: str, following: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        for target in following.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def _names(body: Iterable[ast.AST], kind: str) -> Iterator[tuple[str, str]]:
    """Yield each name that is imported, with the kind of the import."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, kind) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", kind) for alias in node.names)
        elif isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
            yield from _names(node.body, "types")
            yield from _names(node.orelse, kind)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and kind == "top"
            yield from _names(ast.iter_child_nodes(node), "lazy" if inside else kind)


def _file(name: str, ours: set[str]) -> str:
    """Return the file of a module, or of the module that has a name; empty: it isn't one of ours."""
    path = name.replace(".", "/")
    above = path.rpartition("/")[0]
    candidates = (f"{path}.py", f"{path}/__init__.py", f"{above}.py", f"{above}/__init__.py")
    return next((file for file in candidates if file in ours), "")
