"""Shows a preset: its purpose, its rules with locked values filled in, and the results of its tests."""

from pathlib import Path
from typing import Any, NamedTuple

from rules.files import read_file
from rules.loading.document import Listing, Mapping, Node, Scalar, parse
from rules.loading.load import PRESETS, failures, preset_names, read_preset
from rules.loading.preset_locks import Places, fill_places, list_places, read_locks
from rules.problems import Problem, RuleFileError, did_you_mean, quote


def preset_source(name: str) -> bytes:
    """Return the text of a shipped preset."""
    return read_file(PRESETS / f"{name}.yaml")


class PresetTest(NamedTuple):
    """A test of a preset; `failure` is empty if it passed."""

    attempt: str
    expect: str
    failure: str


class Preset(NamedTuple):
    """A preset, on this machine. `state`: `static`, `locked` or `not locked`."""

    name: str
    about: str
    state: str
    includes: tuple[str, ...]
    lock: Path | None
    places: Places
    rules: tuple[dict[str, Any], ...]
    tests: tuple[PresetTest, ...]


def show_preset(name: str, locks: tuple[Path, ...], *, tried: bool = True) -> Preset:
    """Read one, and try its tests if it is to be `tried`. Raises RuleFileError: no such preset, or a broken lock."""
    if name not in preset_names():
        hint = did_you_mean(name, preset_names()) or "; `exeat presets list` lists them"
        raise RuleFileError([Problem("exeat presets", 1, 1, f"there is no preset {quote(name)}{hint}")])
    source = preset_source(name)
    problems: list[Problem] = []
    root = parse(source, name, problems)
    found = read_locks(locks, problems) if root is not None and list_places(root) else {}
    if problems or root is None:
        raise RuleFileError(problems)
    lock, places = found.get(name, (None, {}))
    state = "static" if not list_places(root) else "not locked" if lock is None else "locked"
    shown = _value(fill_places(root, places).root if lock is not None else root)
    includes = tuple(entry["preset"] for entry in shown.get("include", ()))
    rules = tuple({**rule, "to": _targets(rule["to"])} for rule in shown.get("rules", ()))
    tests = () if state == "not locked" or not tried else _tests(name, locks)
    return Preset(name, _about(source.decode()), state, includes, lock, places, rules, tests)


def _tests(name: str, locks: tuple[Path, ...]) -> tuple[PresetTest, ...]:
    loaded = read_preset(name, locks)
    failed = {(problem.line, problem.column): problem.message for problem in failures(loaded)}
    return tuple(PresetTest(t.question.text, t.expect.value, failed.get((t.line, t.column), "")) for t in loaded.tests)


def _about(source: str) -> str:
    """Return the comment at the start of a preset."""
    lines: list[str] = []
    for line in source.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _targets(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"(locked: {value.get('locked', '')})"]
    return list(value) if isinstance(value, list) else [value]


def _value(node: Node) -> Any:
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Listing):
        return [_value(item) for item in node.items]
    assert isinstance(node, Mapping)
    return {word: _format_value(word, _value(value)) for word, (_, value) in node.pairs.items()}


def _format_value(word: str, value: Any) -> Any:
    return [value] if word in {"methods", "paths", "ports"} and isinstance(value, str) else value
