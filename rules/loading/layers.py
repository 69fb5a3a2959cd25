"""Merges the settings, `sandbox` sections and commands of all files: layers bound them, other files only tighten."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rules.loading.document import FilePlace, Node
from rules.matching.layers import RANKS, Layer, strictest_value, strictness
from rules.matching.policy import Policy
from rules.matching.revision import digest_of
from rules.problems import Problem, quote
from rules.sandbox import (
    NO_SANDBOX_FLOOR,
    Command,
    SandboxFloor,
    SandboxSettings,
    SandboxUser,
    WorkspaceMode,
    includes_device,
)
from rules.settings import Settings
from rules.values.patterns import Pattern
from rules.verdicts import LayerKind, Verdict

if TYPE_CHECKING:
    from rules.loading.sandbox_schema import ParsedSandbox

_PROXY: Final = ("upstream", "upstream_auth", "upstream_except")  # of one file, or of several that say the same
_UPSTREAM: Final = (*_PROXY, "upstream_ca")
GONE: Final = "as-it-was"  # name of the layer of rules that root's files no longer have
_TIGHTENED: Final = ("mode", "tls", "dns", "on_journal_failure", "idle_timeout")


class FileSettings(NamedTuple):
    """The settings of one file, and where each stands."""

    file: str
    layer: bool
    settings: Settings
    nodes: Mapping[str, Node]


class SettingProblem(NamedTuple):
    """A setting that its file can't have."""

    file: str
    node: Node
    message: str


def merge_settings(file_settings: Iterable[FileSettings]) -> tuple[Settings, list[SettingProblem]]:
    """Merge the settings of several files: other files may tighten the layers' settings and never loosen them."""
    found: dict[str, Any] = {}
    by: dict[str, str] = {}
    objections: list[SettingProblem] = []
    files = sorted(file_settings, key=lambda each: not each.layer)
    proxy = next((each for each in files if "upstream" in each.nodes), None)
    for each in files:
        for key, node in each.nodes.items():
            value = getattr(each.settings, key, None)
            if key in _UPSTREAM and not each.layer and any(other.layer for other in files):
                objections.append(
                    SettingProblem(
                        each.file, node, f"`{key}` can be set only by a layer where there is one: remove it here"
                    )
                )
            elif key in _PROXY and proxy is not None and proxy.file != each.file:
                if key == "upstream" and any(getattr(proxy.settings, k) != getattr(each.settings, k) for k in _PROXY):
                    message = f"`{proxy.file}` sets another `upstream`: remove it and its options here"
                    objections.append(SettingProblem(each.file, node, message))
            elif key not in found:
                found[key], by[key] = value, each.file
            elif strictness(key, value) > strictness(key, found[key]) and not each.layer:
                message = f"`{key}` is less strict here than in `{by[key]}`, a layer: other files can only tighten it"
                objections.append(SettingProblem(each.file, node, message))
            elif key not in RANKS and key != "idle_timeout" and value != found[key]:
                message = f"`{key}` has another value in `{by[key]}`, a layer: remove it here"
                objections.append(SettingProblem(each.file, node, message))
            elif strictness(key, value) < strictness(key, found[key]):
                found[key], by[key] = value, each.file
    return Settings(**found), objections


def _is_under(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


def _matched(text: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns covers everything that `text`, a glob itself, covers."""
    return any(Pattern.parse(pattern).matches(text) for pattern in patterns)


NUMBERS: Final = ("timeout", "memory", "cpu", "processes", "files", "disk")
_UNITED: Final = ("hide", "protected", "approval")
_RANKS: Final[dict[str, tuple[object, ...]]] = {"workspace": tuple(WorkspaceMode), "user": tuple(SandboxUser)}
_GIVING: Final[dict[str, Callable[[Any, Any], bool]]] = {  # lists that give, and when one covers an entry of another
    "read": _is_under,
    "write": _is_under,
    "keep": _matched,
    "devices": includes_device,
    "caches": lambda cache, caches: cache in caches,
}
# Fields of `SandboxSettings` that have another name in a rule file.
WRITTEN: Final = {"variables": "set"}
_MOST: Final = 1024


class SandboxFile(NamedTuple):
    """The `sandbox` and `commands` of one file; `shown` is its path as the user wrote it."""

    shown: str
    layer: bool
    sandbox: "ParsedSandbox | None"
    commands: tuple[tuple[Command, Node], ...]


def merge_sandboxes(
    files: Iterable[SandboxFile], places: Mapping[str, FilePlace], problems: list[Problem]
) -> tuple[SandboxSettings, SandboxFloor, tuple[Command, ...]]:
    """Merge the sandbox settings, their floor and the commands of all files. Adds problems to `problems`."""
    files = list(files)
    box, floor = _merge(files, problems)
    commands: dict[str, tuple[Command, str, Node]] = {}
    for file in files:
        for command, node in file.commands:
            existing = commands.get(command.cite)
            place = places.get(command.cite)
            if existing is not None or place is not None:
                line = existing[2].line if existing is not None else place.node.line if place is not None else 1
                what = "command" if existing is not None else "rule"
                message = f"the id of this command is also that of the {what} in line {line}"
                problems.append(Problem(file.shown, node.line, node.column, message))
            commands.setdefault(command.cite, (command, file.shown, node))
    if len(commands) > _MOST:
        _, shown, node = list(commands.values())[_MOST]
        problems.append(Problem(shown, node.line, node.column, f"there are more than {_MOST} commands"))
    return box, floor, tuple(sorted((command for command, _, _ in commands.values()), key=lambda c: c.cite))


def _merge(files: Iterable[SandboxFile], problems: list[Problem]) -> tuple[SandboxSettings, SandboxFloor]:
    """Merge the sandbox settings of all files, and the floor of the layers."""
    having = [(file, file.sandbox) for file in files if file.sandbox is not None]
    floor = NO_SANDBOX_FLOOR
    for file, sandbox in having:
        if file.layer:
            floor = _raise_floor(floor, file.shown, sandbox, problems)
    plain = [(file, sandbox) for file, sandbox in having if not file.layer]
    for file, sandbox in plain[1:]:
        first = min(sandbox.nodes.values(), key=lambda node: (node.line, node.column), default=None)
        line, column = (first.line, first.column) if first is not None else (1, 1)
        message = f"`sandbox` is in `{plain[0][0].shown}` already: only one file may have it, and files with `layer`"
        problems.append(Problem(file.shown, line, column, message))
    box = floor.box
    for file, sandbox in plain[:1]:
        box, objections = apply_floor(sandbox.box, sandbox.nodes, floor)
        problems += [_problem(file.shown, sandbox.nodes[name], message) for name, message in objections]
    return box, floor


def _problem(file: str, node: Node, message: str) -> Problem:
    return Problem(file, node.line, node.column, message)


def apply_floor(
    box: SandboxSettings, stated: Iterable[str], floor: SandboxFloor
) -> tuple[SandboxSettings, list[tuple[str, str]]]:
    """Apply the layers' floor to settings: the result, and (field, message) for each that goes beyond a layer."""
    stated = frozenset(stated)
    objections: list[tuple[str, str]] = []
    by = dict(floor.by)
    found: dict[str, Any] = {}
    for name in SandboxSettings._fields:
        value, layer_value = getattr(box, name), getattr(floor.box, name)
        found[name] = _combine(name, value, layer_value)
        if name not in floor.stated:
            continue
        if name not in stated:
            found[name] = layer_value
        elif message := _beyond(name, value, layer_value):
            objections.append((name, f"{message} `{by[name]}`, a layer"))
    return SandboxSettings(**found), objections


def _raise_floor(floor: SandboxFloor, file: str, stated: "ParsedSandbox", problems: list[Problem]) -> SandboxFloor:
    """Add a layer to the floor: limits combine, lists intersect."""
    found: dict[str, Any] = {}
    by = dict(floor.by)
    for name, node in stated.nodes.items():
        value, layer_value = getattr(stated.box, name), getattr(floor.box, name)
        by.setdefault(name, file)
        if name not in floor.stated:
            found[name] = value
        elif name in _GIVING:
            covers = _GIVING[name]
            found[name] = tuple(
                sorted({e for e in value if covers(e, layer_value)} | {e for e in layer_value if covers(e, value)})
            )
        elif name in {"hostname", "variables"} and (message := _beyond(name, value, layer_value)):
            problems.append(_problem(file, node, f"{message} `{by[name]}`, a layer too"))
        else:
            found[name] = _combine(name, value, layer_value)
    return SandboxFloor(floor.box._replace(**found), floor.stated | set(stated.nodes), tuple(sorted(by.items())))


def _combine(name: str, value: Any, layer_value: Any) -> Any:
    """Combine two values of which both can be applied."""
    if name in _UNITED:
        return tuple(sorted({*value, *layer_value}, key=str))
    if name == "variables":
        return tuple(sorted({**dict(value), **dict(layer_value)}.items()))
    if value is None or layer_value is None:
        return layer_value if value is None else value
    if name in NUMBERS:
        return min(value, layer_value)
    if name in _RANKS:
        return min(value, layer_value, key=_RANKS[name].index)
    return value


def _beyond(name: str, setting: Any, layer_value: Any) -> str:
    """Describe how a value exceeds a layer's, or return an empty text; the caller appends the layer's name."""
    if name in _RANKS:
        laxer = setting is not None and _RANKS[name].index(setting) > _RANKS[name].index(layer_value)
        return f"`{name}: {setting}` is laxer than in" if laxer else ""
    if name == "hostname":
        return "`hostname` is another in" if setting != layer_value else ""
    if name == "variables":
        known = dict(layer_value)
        differing = next((key for key, value in setting if known.get(key, value) != value), None)
        return f"{quote(differing)} has another value in" if differing is not None else ""
    beyond = [entry for entry in setting if not _GIVING[name](entry, layer_value)] if name in _GIVING else []
    return f"{quote(format_value(tuple(beyond[:1])) or '')} is not in the `{name}` of" if beyond else ""


def differences(old: SandboxSettings, new: SandboxSettings) -> list[tuple[str, str | None, str | None]]:
    """List the differences: the key, the old and the new value (None: not set)."""
    found = []
    for name, was, current in zip(SandboxSettings._fields, old, new, strict=True):
        if was != current:
            found.append((f"sandbox {WRITTEN.get(name, name)}", format_value(was), format_value(current)))
    return found


def format_value(value: object) -> str | None:
    """Format a field of the sandbox settings; None if it is not set."""
    if value is None or value == ():
        return None
    if isinstance(value, tuple):
        return ", ".join(": ".join(each) if type(each) is tuple else str(each) for each in value)
    return str(value)


def put_over(policy: Policy, roots: Policy, unread: Iterable[str]) -> Policy:
    """Combine root's current files with a policy whose other files can't be read. `unread`: why they can't.

    A broken rule file of a task must not keep root's new rules out. The result is at least as strict as all files
    together would be, if they could be read:

    - Removed rules of root's files allow nothing. Those that deny, ask or flag act as a layer until all files load.
    - Current rules of root's files act as layers. Those that don't allow are in the pool as well.
    - Of each setting the strictest value applies.
    """
    old_layers = [layer for layer in policy.layers if layer.roots]
    current = {digest_of(rule): rule for rule in roots.rules}
    old_rules = {rule for layer in old_layers for rule in layer.rules}
    remaining = [rule for rule in policy.rules if rule not in old_rules or digest_of(rule) in current]
    remaining_digests = {digest_of(rule) for rule in remaining}
    added = [rule for digest, rule in current.items() if digest not in remaining_digests and not rule.allows]
    removed = tuple(rule for rule in old_rules if digest_of(rule) not in current and rule.action is not Verdict.ALLOW)
    layers = [layer for layer in policy.layers if not layer.roots]
    if removed:
        layers.append(Layer(LayerKind.MANDATORY, GONE, removed))
    changed = {command.cite for command in roots.commands}
    return Policy(
        [*remaining, *added],
        _settings(policy, old_layers, roots),
        dict.fromkeys((*policy.sources, *roots.sources)),
        layers=[*layers, *roots.layers],
        authorities={**policy.authorities, **roots.authorities},
        secrets=policy.secrets,
        box=policy.box,
        floor=policy.floor,
        commands=[*(command for command in policy.commands if command.cite not in changed), *roots.commands],
        unread=unread,
    )


def _settings(policy: Policy, old_layers: Iterable[Layer], roots: Policy) -> Settings:
    """Tighten the settings that a root layer has or had; the others stay."""
    stated = {key for layer in roots.layers for key in layer.says}
    was_stated = {key for layer in old_layers for key in layer.says}
    found = policy.settings
    for key in _TIGHTENED:
        if key in stated or key in was_stated:
            other = roots.settings if key in stated else Settings()
            value = strictest_value(key, (getattr(found, key), getattr(other, key)))
            found = found._replace(**{key: value})
    return found
