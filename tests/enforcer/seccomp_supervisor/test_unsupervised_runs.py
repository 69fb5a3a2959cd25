"""Where nobody may listen to a task's filter: tasks run and are refused the same, but none whose rules have `commands`."""

import json
import sys
from pathlib import Path

UNDER = Path(__file__).parent / "under_a_listener.py"
EXEAT = Path(sys.executable).with_name("exeat")
NONE = "version: 1\nname: none\nrules: []\n"
GUARD = """version: 1
name: guard
commands:
  - {{id: a, run: "terraform apply", action: {action}}}
rules: []
"""


def _run(someone, *words):
    return someone.run([sys.executable, UNDER, EXEAT, *words])


def test_task_without_a_supervisor_is_denied_the_same(someone):
    rules = someone.write(someone.home / "rules.yaml", NONE)
    script = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.unshare(0x40000000), ctypes.get_errno())"
    )
    done = _run(someone, "run", "--quiet", "--rules", rules, "--", "python3", "-c", script)
    assert done.stdout == b"-1 1\n", done.stderr
    assert [event for event in someone.events() if event["kind"] == "syscall.denied"] == []


def test_task_with_command_rules_needs_a_supervisor(someone):
    for action in ("deny", "ask", "flag"):
        rules = someone.write(someone.home / "rules.yaml", GUARD.format(action=action))
        done = _run(someone, "run", "--rules", rules, "--", "sh", "-c", "echo RAN")
        assert done.returncode == 125
        assert done.stdout == b""
        assert b"the rules have `commands`, and no program start can be held on this host" in done.stderr


def test_doctor_reports_a_missing_supervisor(someone):
    done = _run(someone, "doctor", "--format", "json")
    said = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert not said["watched calls"]["works"]
    assert not said["watched calls"]["needed"]
