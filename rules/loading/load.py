"""Loads a policy from rule files: read, include, check, compile, and run their tests.

All problems of all files are reported at once. It reads only named files (`rules.files`), presets, and `presets.lock`,
which says where this machine's registries are.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.feeds import Feed
from rules.files import describe_error, read_file
from rules.loading.document import FilePlace, Node, parse
from rules.loading.fields import parse_certificates
from rules.loading.layers import FileSettings, merge_settings
from rules.loading.rule_file import FileReader, Include, RuleFile, Selection, apply_selections
from rules.loading.rule_schema import RuleReader
from rules.loading.secret_schema import merge_secrets
from rules.matching.layers import Layer, reachable
from rules.matching.policy import Policy
from rules.problems import Problem, RuleFileError, did_you_mean, limit_problems, quote
from rules.rule import Rule
from rules.sandbox import NO_SANDBOX_FLOOR, NO_SANDBOX_SETTINGS, Command, SandboxFloor, SandboxSettings
from rules.settings import Settings
from rules.verdicts import LayerKind, Mode, TlsMode

if TYPE_CHECKING:
    from rules.loading.cases import RuleTest
    from rules.loading.preset_locks import Places

_MOST_PROBLEMS: Final = 100_000
_MOST_FILES: Final = 256
PRESETS: Final = Path(__file__).parent.parent / "presets"


class Loaded(NamedTuple):
    """A loaded policy, with the places of its rules and the other contents of its files."""

    policy: Policy
    tests: "tuple[RuleTest, ...]"
    warnings: tuple[Problem, ...]
    places: Mapping[str, FilePlace]  # of every rule, by its id
    settings: FilePlace | None = None  # where they stand, if any file has them
    secrets: Mapping[str, FilePlace] = {}  # by their ids
    files: tuple[Path, ...] = ()  # the rule files that were read, but for presets
    searched_paths: tuple[Path, ...] = ()  # every path that was looked for, as written; without presets
    boxes: tuple[FilePlace, ...] = ()  # where each `sandbox` stands


def load(paths: Sequence[Path], locks: Sequence[Path] | None = None) -> Policy:
    """Load the files as one policy, if they are right and their tests pass. Raises RuleFileError with all problems."""
    loaded = read(paths, locks)
    failed = failures(loaded)
    if failed:
        raise RuleFileError(failed)
    return loaded.policy


def failures(loaded: Loaded) -> list[Problem]:
    """Run the tests of the files; returns a problem for each that fails."""
    if not loaded.tests:
        return []
    from rules.loading.cases import run

    failed = [(result.case, result.failure) for result in run(loaded.policy, loaded.tests) if result.failure]
    return [Problem(case.file, case.line, case.column, f"test failed: {failure}") for case, failure in failed]


def read(
    paths: Sequence[Path],
    locks: Sequence[Path] | None = None,
    *,
    mandatory: Sequence[Path] = (),
    instead: Mapping[Path, bytes] | None = None,
) -> Loaded:
    """Load the files without trying their tests. Raises RuleFileError with all problems.

    `mandatory` files (root's) are layers even without `layer`.
    `locks`: where to look for what discovered presets stand for, by default `lock_paths()`.
    `instead`: by their resolved paths, what rule files are taken to hold in place of what they do.
    """
    loader = _Loader(locks, instead)
    for path in mandatory:  # first, so that a later mention of the same file counts as a repetition
        loader.take(str(path), Path(path), None, mandatory=True)
    for path in paths:
        loader.take(str(path), Path(path), None)
    return loader.finish()


def preset_names() -> tuple[str, ...]:
    """List the presets that are shipped."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def read_preset(name: str, locks: Sequence[Path] | None = None) -> Loaded:
    """Load one preset by itself, with its tests. Raises RuleFileError: no such preset, or it isn't locked."""
    loader = _Loader(locks)
    loader.take_preset(name)
    return loader.finish()


class _LoadedFile(NamedTuple):
    """A file that was read."""

    shown: str
    path: Path
    content: RuleFile
    selections: tuple[Selection, ...] = ()  # of the include that named the file, and of the includes around that one
    ids: Mapping[str, str] = {}  # by what id a preset knows a rule that was written more than once
    via: FilePlace | None = None


class _IncludedFile(NamedTuple):
    """Which file includes another, and what it keeps of it."""

    file: str
    include: Include
    selections: tuple[Selection, ...]
    via: FilePlace | None = None


def _via(named: _IncludedFile | None) -> FilePlace | None:
    return None if named is None else named.via or FilePlace(named.file, named.include.node)


def _place(shown: str, named: _IncludedFile | None) -> tuple[str, int, int]:
    return (shown, 1, 1) if named is None else (named.file, named.include.node.line, named.include.node.column)


class _Loader:
    """Follows includes depth first; a file that is included twice counts once."""

    def __init__(self, locks: Sequence[Path] | None, instead: Mapping[Path, bytes] | None = None) -> None:
        self._lock_paths = locks
        self._instead = instead or {}
        self._locks: dict[str, tuple[Path, Places]] | None = None  # read when a preset needs them
        self._locked_by: dict[Path, None] = {}
        self._presets: set[Path] = set()
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._places: dict[str, FilePlace] = {}
        self._files_by_path: dict[Path, _LoadedFile | None] = {}
        self._feeds: dict[Path, Feed] = {}  # lists, by where they are
        self._included: dict[Path, list[Path]] = {}  # by the file that names them
        self._open: list[Path] = []  # files whose includes are being followed
        self._searched: dict[Path, None] = {}

    def take(  # noqa: C901 - what can be wrong with a file, one after another
        self, shown: str, path: Path, named: _IncludedFile | None, *, mandatory: bool = False
    ) -> None:
        """Read one file and what it includes. `named`: by which file, and how."""
        place = _place(shown, named)
        selections = () if named is None else named.selections
        if path.parent != PRESETS:
            self._searched[path] = None
        try:
            resolved = path.resolve(strict=True)
            if self._open:
                self._included.setdefault(self._open[-1], []).append(resolved)
            if resolved in self._open:
                circle = " -> ".join(str(step.name) for step in (*self._open[self._open.index(resolved) :], resolved))
                self._problems.append(Problem(*place, f"`{shown}` includes itself: {circle}"))
                return
            if resolved in self._files_by_path:
                self._check_same(self._files_by_path[resolved], selections, place)
                return
            data = self._instead[resolved] if resolved in self._instead else read_file(resolved)
        except (OSError, RuntimeError, ValueError) as error:
            self._problems.append(Problem(*place, f"`{shown}` can't be read: {describe_error(error)}"))
            return
        if len(self._files_by_path) >= _MOST_FILES:
            self._problems.append(Problem(*place, f"more than {_MOST_FILES} files are included"))
            return
        content, ids = self._content(data, shown, path.stem, place if resolved in self._presets else None)
        if mandatory and content is not None:
            content = content._replace(layer=content.layer or LayerKind.MANDATORY, roots=True)
        via = _via(named) if resolved in self._presets else None
        self._files_by_path[resolved] = (
            None if content is None else _LoadedFile(shown, resolved, content, selections, ids, via)
        )
        if content is None:
            return
        if named is not None or resolved in self._presets:
            self._check_included(shown, content)
        self._open.append(resolved)
        for include in content.includes:
            inner = _IncludedFile(shown, include, selections + ((include.selection,) if include.selection else ()), via)
            if include.preset:
                self.take_preset(include.preset, inner)
            else:
                self.take(str(Path(shown).parent / include.file), resolved.parent / include.file, inner)
        self._open.pop()

    def _check_included(self, shown: str, content: RuleFile) -> None:
        if content.settings_node is not None:
            self._complain(shown, content.settings_node, "an included file may not have `settings`")
        if content.secrets:
            self._complain(shown, content.secrets[0][1], "an included file may not have `secrets`")
        if content.sandbox_node is not None:
            self._complain(shown, content.sandbox_node, "an included file may not have `sandbox`")

    def take_preset(self, name: str, named: _IncludedFile | None = None) -> None:
        """Read a preset. `named`: by which file."""
        path = PRESETS / f"{name}.yaml"
        if name not in preset_names():
            hint = did_you_mean(name, preset_names()) or "; `exeat presets list` lists them"
            self._problems.append(Problem(*_place(name, named), f"there is no preset {quote(name)}{hint}"))
            return
        self._presets.add(path.resolve())
        self.take(str(path), path, named)

    def _check_same(
        self, taken: _LoadedFile | None, selections: tuple[Selection, ...], place: tuple[str, int, int]
    ) -> None:
        if taken is not None and [s.same for s in taken.selections] != [s.same for s in selections]:
            message = (
                f"`{taken.content.name}` is included already, with another `only`, `except` or `credential`: "
                "one of them is enough"
            )
            self._problems.append(Problem(*place, message))

    def finish(self) -> Loaded:
        """Read the rules of all files under the settings of the one that has any, and compile."""
        files = [taken for taken in self._files_by_path.values() if taken is not None]
        settings = self._settings(files)
        self._check_names(files)
        # A layer's rules without `tls` follow the layers' settings, never another file's.
        layers = [taken for taken in files if taken.content.layer is not None]
        of_layers = settings.tls if any("tls" in t.content.settings_nodes for t in layers) else TlsMode.INSPECT
        layered = {path for taken in layers for path in reachable(taken.path, self._included)}
        selected = {t.path: self._rules(t, of_layers if t.path in layered else settings.tls) for t in files}
        rules = [rule for each in selected.values() for rule in each]
        certified = self._authorities(rules, settings, files)
        secrets = merge_secrets(
            [(t.shown, t.content.secrets, t.content.tests) for t in files], rules, self._places, self._problems
        )
        box, floor, commands = self._box(files)
        if not self._problems:
            chosen = dict.fromkeys(selection for taken in files for selection in taken.selections)
            self._problems += [problem for selection in chosen for problem in selection.unused()]
        if self._problems:
            order = {taken.shown: number for number, taken in enumerate(files)}
            problems = sorted(self._problems, key=lambda p: (order.get(p.file, len(order)), p))
            raise RuleFileError(limit_problems(problems), tuple(self._searched))
        own = tuple(
            path for path in self._files_by_path if path not in self._presets
        )  # presets are code, and covered as that
        sources = [*own, *self._locked_by, *self._feeds, *map(Path, certified)]
        policy = Policy(
            rules, settings, sources, layers=self._layers(files, selected, of_layers), authorities=certified,
            secrets=secrets, box=box, floor=floor, commands=commands,
        )  # fmt: skip
        tests = tuple(test for taken in files for test in self._tests(taken, alone=taken is files[0]))
        at = next(
            (FilePlace(t.shown, t.content.settings_node) for t in files if t.content.settings_node is not None), None
        )
        stand = {s.id: FilePlace(t.shown, node) for t in files for s, node in t.content.secrets}
        warnings, asked = tuple(self._warnings), tuple(self._searched)
        boxes = tuple(FilePlace(t.shown, t.content.sandbox_node) for t in files if t.content.sandbox_node is not None)
        return Loaded(policy, tests, warnings, self._places, at, stand, own, asked, boxes)

    def _content(
        self, data: bytes, shown: str, stem: str, preset: tuple[str, int, int] | None
    ) -> tuple[RuleFile | None, Mapping[str, str]]:
        before = len(self._problems)
        root = parse(data, shown, self._problems)
        ids: Mapping[str, str] = {}
        if root is not None and preset is not None:
            root, ids = self._fill_preset(root, stem, preset)
        if root is None and len(self._problems) > before:
            return None, ids
        return FileReader(shown, self._problems).read(root, stem), ids

    def _fill_preset(self, root: Node, name: str, place: tuple[str, int, int]) -> tuple[Node | None, Mapping[str, str]]:
        """Write a preset out with what is locked for it, if it stands for anything that has to be."""
        from rules.loading.preset_locks import (  # most policies have no preset
            fill_places,
            list_places,
            lock_paths,
            read_locks,
        )

        required = list_places(root)
        if not required:
            return root, {}
        before = len(self._problems)
        paths = lock_paths() if self._lock_paths is None else self._lock_paths
        if self._locks is None:
            self._searched.update(dict.fromkeys(paths))
            self._locks = read_locks(paths, self._problems)
        path, places = self._locks.get(name, (None, {}))
        if len(self._problems) > before:
            return None, {}  # problems of the locks have been reported already
        missing = [word for word in required if word not in places]
        first = self._files_by_path[self._open[0]] if self._open else None
        run = f"run `exeat presets lock {name}`"
        if path is None:
            message = f"`{name}` is not locked on this machine: {run}, and review what it finds"
        elif path != paths[0] and first is not None and first.content.roots:
            message = f"`{name}` is locked only in `{path}`, which root does not own: {run} as root"
        elif missing:
            message = f"`{path}` has no `{missing[0]}` of `{name}`: {run} again"
        else:
            self._locked_by[path] = None
            return fill_places(root, places)
        self._problems.append(Problem(*place, message))
        return None, {}

    def _tests(self, taken: _LoadedFile, *, alone: bool) -> "Sequence[RuleTest]":
        """Choose the tests that apply. A preset's tests are about it alone: rules next to it may decide otherwise."""
        if taken.path in self._presets and not alone:
            return ()
        return [case for case in taken.content.tests if all(selection.keeps(case) for selection in taken.selections)]

    def _complain(self, shown: str, node: Node, message: str) -> None:
        self._problems.append(Problem(shown, node.line, node.column, message))

    def _settings(self, files: list[_LoadedFile]) -> Settings:
        having = [taken for taken in files if taken.content.settings_node is not None]
        plain = [taken for taken in having if taken.content.layer is None]
        for taken in plain[1:]:
            assert taken.content.settings_node is not None
            message = f"`settings` are in `{plain[0].shown}` already: only one file may have them"
            self._complain(taken.shown, taken.content.settings_node, message)
        layers = [taken for taken in files if taken.content.layer is not None]
        if not layers:
            return (plain[0].content.settings if plain else None) or Settings()
        problems = [
            FileSettings(
                t.shown, t.content.layer is not None, t.content.settings or Settings(), t.content.settings_nodes
            )
            for t in (*layers, *plain[:1])
        ]
        settings, objections = merge_settings(problems)
        for objection in objections:
            self._complain(*objection)
        return settings

    def _layers(self, files: list[_LoadedFile], selected: Mapping[Path, Sequence[Rule]], tls: TlsMode) -> list[Layer]:
        """Yield the layers, each with the rules of all files that it includes."""
        layers: list[Layer] = []
        for taken in files:
            problems = taken.content
            if problems.layer is not None:
                rules = tuple(rule for path in reachable(taken.path, self._included) for rule in selected.get(path, ()))
                mode = (
                    problems.settings.mode if problems.settings and "mode" in problems.settings_nodes else Mode.ENFORCE
                )
                layer = Layer(
                    problems.layer, problems.name, rules, mode, tls, problems.roots, frozenset(problems.settings_nodes)
                )
                layers.append(layer)
        return layers

    def _box(self, files: list[_LoadedFile]) -> tuple[SandboxSettings, SandboxFloor, tuple[Command, ...]]:
        having = [t for t in files if t.content.sandbox is not None or t.content.commands]
        if not having:
            return NO_SANDBOX_SETTINGS, NO_SANDBOX_FLOOR, ()
        from rules.loading.layers import SandboxFile, merge_sandboxes

        problems = [
            SandboxFile(t.shown, t.content.layer is not None, t.content.sandbox, t.content.commands) for t in having
        ]
        return merge_sandboxes(problems, self._places, self._problems)

    def _authorities(self, rules: Sequence[Rule], settings: Settings, files: list[_LoadedFile]) -> dict[str, bytes]:
        required = [(rule.ca, "ca", self._places[rule.id]) for rule in rules if rule.ca is not None]
        if settings.upstream_ca is not None:
            problems = next(taken for taken in files if "upstream_ca" in taken.content.settings_nodes)
            place = FilePlace(problems.shown, problems.content.settings_nodes["upstream_ca"])
            required.append((settings.upstream_ca, "upstream_ca", place))
        self._searched.update((Path(path), None) for path, _, _ in required)
        return _certificates(required, self._problems)

    def _check_names(self, files: list[_LoadedFile]) -> None:
        first: dict[str, _LoadedFile] = {}
        for taken in files:
            other = first.setdefault(taken.content.name, taken)
            if other is not taken:
                message = f"`{other.shown}` is named `{taken.content.name}` too: give one of them another `name`"
                self._problems.append(Problem(taken.shown, 1, 1, message))

    def _rules(self, taken: _LoadedFile, tls: TlsMode) -> list[Rule]:
        feed = partial(self._feed, taken.path.parent)
        reader = RuleReader(
            taken.shown, self._problems, self._warnings, taken.content.name, tls, feed, str(taken.path.parent)
        )
        first: dict[str, Node] = {}
        rules: list[Rule] = []
        for node in taken.content.rules:
            if len(self._problems) > _MOST_PROBLEMS:
                break
            rule = reader.rule(node)
            if rule is None:
                continue
            other = first.setdefault(rule.id, node)
            if other is not node:
                where = f"line {other.line}" if other.line != node.line else f"column {other.column} of this line"
                self._complain(taken.shown, node, f"the id of this rule is also that of the one in {where}")
            ident = rule.id.partition(":")[2]
            selected = apply_selections(rule, taken.ids.get(ident, ident), taken.selections)
            if selected is not None:
                self._places[selected.id] = FilePlace(taken.shown, node, taken.via)
                rules.append(selected)
        return rules

    def _feed(self, directory: Path, text: str) -> Feed:
        """Read a list that a rule names, once. Raises ValueError with what is wrong with it."""
        self._searched[directory / text] = None
        try:
            path = (directory / text).resolve(strict=True)
            if path not in self._feeds:
                self._feeds[path] = Feed.read(read_file(path), text)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"`{text}` can't be read: {describe_error(error)}") from error
        return self._feeds[path]


def _certificates(required: Iterable[tuple[str, str, FilePlace]], problems: list[Problem]) -> dict[str, bytes]:
    """Read the certificates that rules and settings name, as (path, key, place): PEM, by path.

    They are read now, for the gate can't reach them later. What can't be read is put into `problems`.
    """
    found: dict[str, bytes] = {}
    for path, key, place in required:
        try:
            found[path] = found.get(path) or parse_certificates(read_file(Path(path).resolve(strict=True)))
        except (OSError, RuntimeError, ValueError) as error:
            problems.append(place.problem(f"`{path}` can't be used as `{key}`: {describe_error(error)}"))
    return found
