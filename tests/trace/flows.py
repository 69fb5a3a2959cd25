"""The three flows that show how straight the product is, run for real and recorded.

request      one GET on a new inspected TLS connection, from accept to its last event
connection   one spliced TLS connection, from accept to close
run          `exeat run -- true` without a service, all its processes
"""

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.lab import Lab, Name
from tests.trace import recording
from tests.trace.recording import Call

_LAUNCHED = Path(recording.__file__).with_name("launched.py")
_CLIENT = Path(recording.__file__).with_name("client.py")
_PYTHON = Path(sys.base_prefix) / "bin" / "python3"
_INSPECTED, _SPLICED = "inspected.example", "spliced.example"
_NAMES = {_INSPECTED: Name.at("93.184.216.34"), _SPLICED: Name.at("93.184.216.35")}
_RULES = f"""
version: 1
name: trace
rules:
  - {{id: inspected, to: {_INSPECTED}, http: {{methods: [GET], paths: ["/echo"]}}, action: allow}}
  - {{id: spliced, to: {_SPLICED}, tls: splice, action: allow}}
"""
_TRIES = 3  # the supervisor looks at rule files every so often, and that may fall into a flow: the shortest try counts
_NO_SERVICE = {"EXEAT_CONTROL": "/dev/null/none"}


class Figures(NamedTuple):
    """How many files, folders and calls of ours a flow takes, and how often it changes from one folder to another.

    What runs while a module is imported isn't of the flow.
    """

    files: int
    folders: int
    changes: int
    calls: int


def figures(calls: Iterable[Call]) -> Figures:
    """Count. A change is a call in another folder than the call before it in the same thread."""
    files, changes, count = set(), 0, 0
    at: dict[tuple[int, int], str] = {}
    for call in calls:
        if call.is_import:
            continue
        files.add(call.file)
        changes += at.get(call.thread, call.folder) != call.folder
        at[call.thread] = call.folder
        count += 1
    return Figures(len(files), len({str(Path(file).parent) for file in files}), changes, count)


def record() -> dict[str, list[Call]]:
    """Run all three flows in a local internet and return their calls. Needs root."""
    with Lab(_NAMES) as lab:
        rules = lab.home() / "rules.yaml"
        rules.write_text(_RULES)
        shutil.copy(_CLIENT, lab.workspace())
        _exeat(lab, "true", rules=rules)  # makes what only a first run makes
        run, _ = _exeat(lab, "true", rules=rules)
        tries = [_visits(lab, rules) for _ in range(_TRIES)]
    return {name: min((each[name] for each in tries), key=figures) for name in tries[0]} | {"run": run}


def _visits(lab: Lab, rules: Path) -> dict[str, list[Call]]:
    calls, said = _exeat(lab, _PYTHON, _CLIENT.name, _INSPECTED, _SPLICED, rules=rules)
    when = json.loads(said)
    names = {"request": _INSPECTED, "connection": _SPLICED}
    return {flow: [call for call in calls if _within(call, *when[name])] for flow, name in names.items()}


def _exeat(lab: Lab, *command: object, rules: Path) -> tuple[list[Call], str]:
    """Return the calls of a run, and what its task printed."""
    place = lab.directory / "recording"
    words = ["run", "--quiet", "--read", sys.base_prefix, "--rules", rules, "--", *command]
    done = lab.run(["python", _LAUNCHED, place, *map(str, words)], cwd=lab.workspace(), env=_NO_SERVICE)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return list(recording.read(place)), done.stdout


def _within(call: Call, began: int, ended: int) -> bool:
    return began <= call.at <= ended
