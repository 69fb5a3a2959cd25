import json
import subprocess
import sys

import pytest

from tests.support import harness
from tests.trace import flows, imports, recording

TINY = {
    **dict.fromkeys(("rules/__init__.py", "proxy/__init__.py", "proxy/gate/__init__.py", "enforcer/__init__.py"), ""),
    "rules/values.py": "def one():\n    return 1\n\ndef many():\n    yield one()\n    yield one()\n",
    "proxy/gate/asks.py": "from rules.values import many, one\n\nclass Gate:\n    def ask(self):\n        return one() + sum(many())\n",
    "enforcer/starts.py": "import os, threading\nfrom proxy.gate.asks import Gate\n\ndef start(): \n    return Gate().ask()\n",
}
PROGRAM = """
import os, sys, threading
from pathlib import Path
from enforcer.starts import start
sys.path.append(sys.argv[2])
from tests.trace.recording import Recording
Recording(Path(sys.argv[1]), Path.cwd()).begin()
WAY
"""
IN_A_CHILD = "pid = os.fork()\nif pid == 0:\n    start()\n    os.kill(os.getpid(), 9)\nos.waitpid(pid, 0)"
IN_A_THREAD = "thread = threading.Thread(target=start)\nthread.start()\nthread.join()"
# `start`, `ask`, and in values.py `one`, then three resumptions of `many` and between them `one` twice.
ONCE = flows.Figures(files=3, folders=3, changes=2, calls=8)
WAYS = {
    "called once": ("start()", ONCE),
    "called twice, with a change back": ("start(); start()", flows.Figures(3, 3, 5, 16)),
    "in a child that is killed": (IN_A_CHILD, ONCE),
    "in a thread": (IN_A_THREAD, ONCE),
    "in a child and here, without a change between them": (f"{IN_A_CHILD}\nstart()", flows.Figures(3, 3, 4, 16)),
    "nothing of ours": ("sorted([2, 1], key=lambda x: x)", flows.Figures(0, 0, 0, 0)),
}


def tree(directory, content):
    for name, text in content.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


@pytest.mark.parametrize("way", WAYS)
def test_known_flow_is_counted_exactly(way, tmp_path):
    tree(tmp_path, TINY)
    program, expected = WAYS[way]
    place = tmp_path / "recording"
    words = [sys.executable, "-c", PROGRAM.replace("WAY", program), place, harness.PROJECT]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=30)
    assert flows.figures(recording.read(place, tmp_path)) == expected


def test_imported_file_is_distinguished_from_a_called_one(tmp_path):
    tree(tmp_path, TINY)
    place = tmp_path / "recording"
    program = PROGRAM.replace("from enforcer.starts import start\n", "").replace("WAY", "import proxy.gate.asks")
    subprocess.run([sys.executable, "-c", program, place, harness.PROJECT], cwd=tmp_path, check=True, timeout=30)
    calls = recording.read(place, tmp_path)
    found = [(call.file, call.is_import) for call in calls if not call.file.endswith("__init__.py")]
    assert found == [("proxy/gate/asks.py", True), ("rules/values.py", True), ("proxy/gate/asks.py", True)]


# What each file imports and how; the circles between folders and inside one that this makes, of what is at the top.
CIRCLES = {
    "none": ({"proxy/a.py": "import rules.b", "rules/b.py": ""}, [], []),
    "of two folders": (
        {"rules/a/x.py": "from rules.b import y", "rules/b/y.py": "", "rules/b/z.py": "from rules.a.x import name"},
        [["rules/a", "rules/b"]],
        [],
    ),
    "of two files": ({"rules/a.py": "from rules import b", "rules/b.py": "import rules.a"}, [], []),
    "of three files": (
        {"rules/a.py": "import rules.b", "rules/b.py": "import rules.c", "rules/c.py": "import rules.a"},
        [],
        [["rules/a.py", "rules/b.py", "rules/c.py"]],
    ),
    "of lazy imports": ({"rules/a/x.py": "def f():\n    import rules.b.y", "rules/b/y.py": "import rules.a.x"}, [], []),
    "of types": ({"rules/a/x.py": "if TYPE_CHECKING:\n    import rules.b.y", "rules/b/y.py": "import rules.a.x"}, [], []),
}  # fmt: skip


@pytest.mark.parametrize("case", CIRCLES)
def test_import_circles_are_found(case, tmp_path):
    content, folders, inside = CIRCLES[case]
    tree(tmp_path, content)
    found = imports.imports(tmp_path)
    assert (imports.between_folders(found, ["top"]), imports.inside_folders(found, ["top"])) == (folders, inside)
    assert bool(imports.between_folders(found)) is (case in {"of two folders", "of lazy imports", "of types"})


def test_folders_have_no_import_circle():
    """Between folders not for types alone, either: who reads one can stop at its edge. Files of one folder may."""
    found = imports.imports()
    assert imports.between_folders(found) == []
    assert imports.inside_folders(found, ["top", "lazy"]) == []


def test_run_is_recorded_in_all_processes(someone):
    """The gate's worker is confined, and killed: what it called is there."""
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: trace\nrules: []\n")
    place = someone.work / "recording"
    words = [sys.executable, harness.PROJECT / "tests/trace/launched.py", place, "run", "--rules", rules, "--", "true"]
    done = someone.run(words)
    assert done.returncode == 0, done.stderr
    calls = list(recording.read(place))
    files = {call.file for call in calls}
    assert {
        "enforcer/cli/run.py",
        "enforcer/run/task.py",
        "enforcer/run/supervise.py",
        "proxy/worker/server.py",
        "rules/loading/load.py",
    } < files
    assert len({call.thread for call in calls}) > 1
    assert json.dumps(flows.figures(calls)._asdict())
