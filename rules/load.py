"""From rule files to a policy: read, include, check, compile, and try the tests that the files carry.

Everything that is wrong in any file is told at once. The only I/O of `rules/` is here: reading files that are named.
"""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.document import Node, parse
from rules.policy import Policy
from rules.problems import Problem, RuleFileError
from rules.rule import Rule
from rules.rule_schema import RuleReader
from rules.schema import FileReader, Include, RuleFile
from rules.settings import Settings

if TYPE_CHECKING:
    from rules.cases import Case

_LARGEST: Final = 64 << 20  # bytes a file
_MOST_FILES: Final = 256


class Loaded(NamedTuple):
    """A policy, and what stood beside its rules."""

    policy: Policy
    tests: "tuple[Case, ...]"
    warnings: tuple[Problem, ...]


def load(paths: Sequence[Path]) -> Policy:
    """Load the files as one policy, if they are right and their tests pass. Raises RuleFileError with all problems."""
    loaded = read(paths)
    failed = failures(loaded)
    if failed:
        raise RuleFileError(failed)
    return loaded.policy


def failures(loaded: Loaded) -> list[Problem]:
    """Try the tests that the files carry, and give a problem for each that fails."""
    if not loaded.tests:
        return []
    from rules.cases import run

    failed = [(result.case, result.failure) for result in run(loaded.policy, loaded.tests) if result.failure]
    return [Problem(case.file, case.line, case.column, f"test failed: {failure}") for case, failure in failed]


def read(paths: Sequence[Path]) -> Loaded:
    """Load the files without trying their tests. Raises RuleFileError with all problems."""
    loader = _Loader()
    for path in paths:
        loader.take(str(path), Path(path), None)
    return loader.finish()


class _Taken(NamedTuple):
    """A file that was read."""

    shown: str
    path: Path
    content: RuleFile


class _Loader:
    """Follows includes depth first; a file that is included twice counts once."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._taken: dict[Path, _Taken | None] = {}
        self._open: list[Path] = []  # the files whose includes are being followed

    def take(self, shown: str, path: Path, included: "tuple[str, Include] | None") -> None:
        """Read one file and what it includes. `included`: by which file, and where it says so."""
        place = (shown, 1, 1) if included is None else (included[0], included[1].node.line, included[1].node.column)
        try:
            resolved = path.resolve(strict=True)
            if resolved in self._open:
                circle = " -> ".join(str(step.name) for step in (*self._open[self._open.index(resolved) :], resolved))
                self._problems.append(Problem(*place, f"`{shown}` includes itself: {circle}"))
                return
            if resolved in self._taken:
                return
            data = _contents(resolved)
        except (OSError, RuntimeError, ValueError) as error:
            why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
            self._problems.append(Problem(*place, f"`{shown}` can't be read: {why}"))
            return
        if len(self._taken) >= _MOST_FILES:
            self._problems.append(Problem(*place, f"more than {_MOST_FILES} files are included"))
            return
        content = self._content(data, shown, path.stem)
        self._taken[resolved] = None if content is None else _Taken(shown, resolved, content)
        if content is None:
            return
        if included is not None and content.settings_node is not None:
            self._complain(shown, content.settings_node, "an included file may not have `settings`")
        self._open.append(resolved)
        for include in content.includes:
            self.take(str(Path(shown).parent / include.file), resolved.parent / include.file, (shown, include))
        self._open.pop()

    def finish(self) -> Loaded:
        """Read the rules of all files under the settings of the one that has any, and compile."""
        files = [taken for taken in self._taken.values() if taken is not None]
        settings = self._settings(files)
        self._check_names(files)
        rules = [rule for taken in files for rule in self._rules(taken, settings)]
        if self._problems:
            order = {taken.shown: number for number, taken in enumerate(files)}
            raise RuleFileError(sorted(self._problems, key=lambda p: (order.get(p.file, len(order)), p)))
        policy = Policy(rules, settings, self._taken)
        tests = tuple(test for taken in files for test in taken.content.tests)
        return Loaded(policy, tests, tuple(self._warnings))

    def _content(self, data: bytes, shown: str, stem: str) -> RuleFile | None:
        before = len(self._problems)
        root = parse(data, shown, self._problems)
        if root is None and len(self._problems) > before:
            return None
        return FileReader(shown, self._problems).read(root, stem)

    def _complain(self, shown: str, node: Node, message: str) -> None:
        self._problems.append(Problem(shown, node.line, node.column, message))

    def _settings(self, files: list[_Taken]) -> Settings:
        having = [taken for taken in files if taken.content.settings_node is not None]
        for taken in having[1:]:
            assert taken.content.settings_node is not None
            message = f"`settings` are in `{having[0].shown}` already: only one file may have them"
            self._complain(taken.shown, taken.content.settings_node, message)
        return (having[0].content.settings if having else None) or Settings()

    def _check_names(self, files: list[_Taken]) -> None:
        first: dict[str, str] = {}
        for taken in files:
            other = first.setdefault(taken.content.name, taken.shown)
            if other != taken.shown:
                message = f"`{other}` is named `{taken.content.name}` too: give one of them another `name`"
                self._problems.append(Problem(taken.shown, 1, 1, message))

    def _rules(self, taken: _Taken, settings: Settings) -> list[Rule]:
        reader = RuleReader(taken.shown, self._problems, self._warnings, taken.content.name, settings.tls)
        lines: dict[str, int] = {}
        rules: list[Rule] = []
        for node in taken.content.rules:
            rule = reader.rule(node)
            if rule is None:
                continue
            line = lines.setdefault(rule.id, node.line)
            if line != node.line:
                self._complain(taken.shown, node, f"the id of this rule is also that of the one in line {line}")
            rules.append(rule)
        return rules


def _contents(path: Path) -> bytes:
    """Read a regular file of bounded size; a FIFO or device could keep the reader waiting for ever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
    return data
