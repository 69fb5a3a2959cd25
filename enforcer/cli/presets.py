"""`exeat presets`: lists presets, shows what each allows and why, and locks this machine's registries."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enforcer.cli.parsing import FORMAT, argument
from enforcer.system.errors import HostError, UsageError
from rules.loading.load import preset_names
from rules.loading.preset_locks import LockedPlace, Places, lock_paths, read_locks
from rules.presets.shipped import Preset, show_preset
from rules.problems import Problem, RuleFileError, did_you_mean, quote

if TYPE_CHECKING:
    from enforcer.presets.locking import Discovery


ARGUMENTS: Final = (
    argument(
        "action",
        ("list", "show", "lock"),
        "list all presets; show some; find and lock this machine's package registries",
    ),
    argument("names", "NAME", "preset; lock: NAME=URL or NAME.PLACE=URL to set a registry by hand", nargs="*"),
    argument("--dry-run", "", "lock: print what was found, and write nothing"),
    argument("--lock", "FILE", "lock file to use instead of this machine's; loading rules doesn't read it"),
    argument("--workspace", "DIR...", "lock: ignore client configuration in this directory, where a task may write"),
    FORMAT,
)


def run(arguments: argparse.Namespace) -> int:
    """List, show or lock. 0; 1 when a preset's tests fail or it could not be locked; 2 on misuse or a broken lock."""
    try:
        return {"lock": _lock, "list": _list, "show": _show}[arguments.action](arguments)
    except HostError as error:
        raise UsageError(str(error)) from error


def _list(arguments: argparse.Namespace) -> int:
    if arguments.names:
        raise UsageError("`list` takes no names; `exeat presets show NAME` shows one")
    presets = [show_preset(name, _locks(arguments), tried=False) for name in preset_names()]
    if arguments.format == "json":
        values = [{"name": p.name, "state": p.state, "rules": len(p.rules), "about": p.about} for p in presets]
        print(json.dumps({"presets": values}, indent=2))
        return 0
    width = max(len(p.name) for p in presets)
    for p in presets:
        print(f"{p.name:<{width}}  {p.state:<10}  {p.about.partition('. ')[0].removesuffix('.')}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    if not arguments.names:
        raise UsageError("`show` needs a NAME; `exeat presets list` lists them")
    known = preset_names()
    for name in arguments.names:
        if name not in known:
            hint = did_you_mean(name, known) or "; `exeat presets list` lists them"
            raise UsageError(f"there is no preset {quote(name)}{hint}")
    presets = [show_preset(name, _locks(arguments)) for name in arguments.names]
    if arguments.format == "json":
        print(json.dumps({"presets": [_value(p) for p in presets]}, indent=2))
    else:
        for p in presets:
            _print(p)
    return 1 if any(test.failure for p in presets for test in p.tests) else 0


def _locks(arguments: argparse.Namespace) -> tuple[Path, ...]:
    return lock_paths() if arguments.lock is None else (arguments.lock,)


def _value(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "about": preset.about,
        "state": preset.state,
        "includes": list(preset.includes),
        "lock": None if preset.lock is None else str(preset.lock),
        "locked": _places_value(preset.places),
        "rules": list(preset.rules),
        "tests": [{"attempt": t.attempt, "expect": t.expect, "failure": t.failure} for t in preset.tests],
    }


def _places_value(places: Places) -> dict[str, Any]:
    return {place: [_locked_value(locked) for locked in entries] for place, entries in places.items()}


def _locked_value(locked: LockedPlace) -> dict[str, Any]:
    resolves = [str(network) for network in locked.resolves_to]
    return {"url": locked.origin.url, "from": locked.source, **({"resolves_to": resolves} if resolves else {})}


def _print(preset: Preset) -> None:
    print(f"{preset.name}: {preset.about}")
    if preset.includes or preset.places or preset.state == "not locked":
        print()
    for name in preset.includes:
        print(f"  all of {name}")
    if preset.state == "not locked":
        print(f"  not locked on this machine: run `exeat presets lock {preset.name}`")
    elif preset.places:
        print(f"  locked in {preset.lock}")
        _print_places(preset.places, "    ")
    for rule in preset.rules:
        default = ", by default" if rule.get("default") == "true" else ""
        print(f"\n  {preset.name}:{rule['id']}  {rule['action']}{default}\n    {_where(rule)}")
        if asked := _asked(rule):
            print(f"    {asked}")
        for each in rule.get("except", ()):
            print(f"    but not {' '.join(filter(None, (_asked(each), _where(each))))}")
        print(f"    {rule.get('why', '')}")
    print()
    for test in preset.tests:
        print(f"  {'FAILED' if test.failure else 'ok    '}  {test.expect:<5}  {test.failure or test.attempt}")


def _where(rule: Mapping[str, Any]) -> str:
    return " ".join(rule.get("to", ())) + (f"  ports {' '.join(rule['ports'])}" if "ports" in rule else "")


def _asked(rule: Mapping[str, Any]) -> str:
    http = rule.get("http", {})
    return " ".join(filter(None, (", ".join(http.get("methods", ())), *http.get("paths", ()))))


def _print_places(places: Places, indent: str) -> None:
    for place, entries in places.items():
        for locked in entries:
            inside = f", at {', '.join(map(str, locked.resolves_to))} alone" if locked.resolves_to else ""
            print(f"{indent}{place:<10}  {locked.origin.url}{inside}\n{indent}{'':<10}    {locked.source}")


def _lock(arguments: argparse.Namespace) -> int:
    from enforcer.presets.client import this_machine
    from enforcer.presets.fetch import Web
    from enforcer.presets.locking import BY_HAND, CLIENTS, discover, write

    wanted = _wanted(arguments.names)
    path = arguments.lock or lock_paths()[0 if os.geteuid() == 0 else -1]
    problems: list[Problem] = []
    there = {name: places for name, (_, places) in read_locks([path], problems).items() if name in CLIENTS}
    if problems:
        raise RuleFileError(problems)
    by_hand = {
        name
        for name, places in there.items()
        if any(e.source == BY_HAND for entries in places.values() for e in entries)
    }
    machine, web = this_machine([Path.cwd(), *arguments.workspace]), Web()
    names = list(wanted) or [name for name in CLIENTS if name not in by_hand]
    found = [discover(CLIENTS[name], machine, web, wanted.get(name, {})) for name in names]
    locked = {f.preset: f.places for f in found if not f.problem}
    if locked and not arguments.dry_run:
        write(path, there | locked, list(locked))
    _report(found, there, path, arguments, kept=sorted(by_hand) if not wanted else [])
    failed = any(f.problem and (wanted or not f.unconfigured) for f in found)
    return 1 if failed or not (locked or there) else 0


def _wanted(names: list[str]) -> dict[str, dict[str, list[str]]]:
    """Read `NAME`, `NAME=URL` and `NAME.PLACE=URL`; the same place twice has both."""
    from enforcer.presets.locking import CLIENTS

    wanted: dict[str, dict[str, list[str]]] = {}
    for word in names:
        name, given, url = word.partition("=")
        name, _, place = name.partition(".")
        client = CLIENTS.get(name)
        if client is None:
            if name in preset_names():
                raise UsageError(f"`{name}` names its hosts itself, so it needs no lock")
            raise UsageError(f"there is no preset {quote(name)} to lock{did_you_mean(name, CLIENTS)}")
        if place and place not in client.places:
            known = ", ".join(f"`{p}`" for p in client.places)
            raise UsageError(f"`{name}` has no place {quote(place)}; it has {known}")
        if given and not url:
            raise UsageError(f"{quote(word)} needs a URL behind its `=`")
        if place and not given:
            raise UsageError(f"{quote(word)} needs a URL, as in `{name}.{place}=URL`; `{name}` alone is looked for")
        places = wanted.setdefault(name, {})
        if given:
            places.setdefault(place or client.places[0], []).append(url)
    return wanted


def _report(
    found: "list[Discovery]", before: dict[str, Places], path: Path, arguments: argparse.Namespace, kept: list[str]
) -> None:
    if arguments.format == "json":
        values = [
            {
                "name": f.preset,
                "locked": _places_value(f.places),
                "notes": list(f.notes),
                "problem": f.problem,
                "changed": not f.problem and before.get(f.preset) != f.places,
            }
            for f in found
        ]
        print(
            json.dumps({"lock": str(path), "written": not arguments.dry_run, "presets": values, "kept": kept}, indent=2)
        )
        return
    for f in found:
        if not f.problem:
            was = before.get(f.preset)
            state = "new" if was is None else "as before" if was == f.places else "CHANGED"
            print(f"{f.preset}: {state}")
            _print_places(f.places, "  ")
        elif arguments.names or not f.unconfigured:
            print(f"exeat: {f.preset}: {f.problem}", file=sys.stderr)
        for note in f.notes:
            print(f"  note: {note}")
    unconfigured = [f.preset for f in found if f.unconfigured]
    if unconfigured and not arguments.names:
        print(f"not configured on this machine, so not locked: {', '.join(unconfigured)}")
    if kept:
        print(f"kept as given by hand: {', '.join(kept)}")
    if any(not f.problem for f in found):
        print(f"{'would be ' if arguments.dry_run else ''}locked in {path}")
