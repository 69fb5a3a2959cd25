"""Programs that need leave to run, as root and as an ordinary user: real shells, real programs, held by the kernel."""

import json
import sys
from pathlib import Path

import pytest

from tests.support import harness

RULES = """version: 1
name: guard
commands:
  - {id: no-apply, run: "terraform apply*", action: deny, why: "the pipeline does that"}
  - {id: pushes, run: "git * push", action: ask, approval: {hold: 1s}}
  - {id: lists, run: "ls --guarded*", action: flag}
  - {id: teamed, run: "id --teamed", action: deny, for: {labels: {team: data}}}
  - {id: others, run: "id --others", action: deny, for: {labels: {team: other}}}
  - {id: forced, run: "true * --force", action: deny}
  - {id: exact, run: /usr/bin/whoami, action: deny}
rules: []
"""

TERRAFORM = '#!/bin/sh\necho RAN "$@"\n'

INSIDE = r"""
PATH=$PWD:$PATH
try() { "$@" 2> said; echo "$1 $2 $? $(grep -c ^exeat: said)"; }
try terraform plan
try terraform apply -auto-approve
try ./link apply
try ./terraform apply
try sh -c 'exec terraform apply'
try env terraform apply
try xargs -a /dev/null terraform apply
try python3 run.py
try git -C . push origin
try ls --guarded
try id --teamed
try id --others
try whoami
try ./copied apply
exec 5< terraform
try /proc/self/fd/5 plan
try /nowhere/terraform apply
try ./directory
try no-such-program
try python3 at.py
"""

RUN = """
import subprocess
try:
    subprocess.run(["terraform", "apply"])
except PermissionError as error:
    raise SystemExit(7)
"""

# execveat by a descriptor and an empty path: what fexecve(3) does
AT = """
import os
os.execve(os.open("terraform", os.O_RDONLY), ["terraform", "apply"], dict(os.environ))
"""

EXPECTED = """
terraform plan 0 0
terraform apply 126 1
./link apply 126 1
./terraform apply 126 1
sh -c 126 1
env terraform 126 1
xargs -a 126 1
python3 run.py 7 1
git -C 126 1
ls --guarded 2 0
id --teamed 126 1
id --others 1 0
whoami  126 1
./copied apply 0 0
/proc/self/fd/5 plan 0 0
/nowhere/terraform apply 127 0
./directory  126 0
no-such-program  127 0
python3 at.py 1 1
"""


@pytest.fixture
def guarded(someone):
    someone.write(someone.home / "rules.yaml", RULES)
    for name, text in (("terraform", TERRAFORM), ("copied", TERRAFORM), ("run.py", RUN), ("at.py", AT)):
        someone.write(someone.work / name, text).chmod(0o755)
    (someone.work / "link").symlink_to("terraform")
    (someone.work / "directory").mkdir()

    def run(*words, **more):
        options = ("--rules", someone.home / "rules.yaml", "--label", "team=data")
        return someone.exeat("run", *options, "--", *words, **more)

    return run


def _told(someone):
    decided = [event for event in someone.events() if event["kind"] == "command.decided"]
    return [(event["argv"], event["outcome"], event["reason"], event["rules"]) for event in decided]


def test_held_program_starts_only_with_approval(someone, guarded):
    someone.write(someone.work / "inside.sh", INSIDE)
    done = guarded("sh", "inside.sh")
    said = [line for line in done.stdout.decode().splitlines() if not line.startswith("RAN")]
    assert said == EXPECTED.strip().splitlines(), done.stderr.decode()
    work = str(someone.work)
    told = _told(someone)
    applied = ("blocked", "rule", ["guard:no-apply"])
    assert [(argv[0].removeprefix(work + "/"), *argv[1:], *rest) for argv, *rest in told] == [
        ("terraform", "apply", "-auto-approve", *applied),
        ("./link", "apply", *applied),
        ("./terraform", "apply", *applied),
        *[("terraform", "apply", *applied)] * 4,
        (told[7][0][0], "-C", ".", "push", "origin", "blocked", "approval_timeout", ["guard:pushes"]),
        (told[8][0][0], "--guarded", "passed", "rule", ["guard:lists"]),
        (told[9][0][0], "--teamed", "blocked", "rule", ["guard:teamed"]),
        (told[10][0][0], "blocked", "rule", ["guard:exact"]),
        ("terraform", "apply", *applied),
    ]
    event = next(event for event in someone.events() if event["kind"] == "command.decided")
    assert event["verdict"] == "deny"
    assert event["process"]["exe"].endswith("sh")
    assert event["process"]["argv"][0] == "sh"
    assert event["process"]["pid"] > 1
    assert b"blocked 11 commands (terraform, link, git and 2 more)" in done.stderr


@harness.as_a_user
def test_caller_reads_the_reason(someone, guarded):
    done = guarded("./terraform", "apply")
    assert done.returncode == 126
    assert b"exeat: terraform apply: not allowed by guard:no-apply: the pipeline does that\n" in done.stderr
    assert done.stdout == b""


@harness.as_a_user
def test_unread_arguments_could_be_any(someone, guarded):
    """A task can't push the word that matters out of sight."""
    many = "x" * 1000
    script = f"import os; os.execv('/usr/bin/true', ['true', *['{many}'] * 200, '--force'])"
    done = guarded("python3", "-c", script)
    assert b"not allowed by guard:forced" in done.stderr
    assert [event["rules"] for event in someone.events() if event["kind"] == "command.decided"] == [["guard:forced"]]


def test_interrupted_held_program_is_recorded_once(someone, guarded):
    """A signal has a held call made anew: the kernel asks again, and nobody is told again."""
    script = """
import os, signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
for n in range(20):
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        try:
            os.execv("./terraform", ["terraform", "apply", str(n)])
        except PermissionError:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    someone.write(someone.work / "again.py", script)
    done = guarded("python3", "again.py")
    assert done.returncode == 0, done.stderr.decode()
    assert [argv[2] for argv, *_ in _told(someone)] == [str(n) for n in range(20)]


def test_without_command_rules_no_program_waits(someone):
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: none\nrules: []\n")
    done = someone.exeat("run", "--rules", rules, "--", "sh", "-c", "true; ls / > /dev/null")
    assert done.returncode == 0
    assert _told(someone) == []


def test_explain_agrees_with_the_run(someone, guarded):
    said = someone.exeat("explain", "--rules", someone.home / "rules.yaml", "--format", "json", "run terraform apply")
    assert json.loads(said.stdout)["rules"] == ["guard:no-apply"]


LOOP = """
until [ -e stop ]; do
  if ./terraform apply > /dev/null 2>&1; then echo yes >> said; else echo no >> said; fi
  sleep 0.05
done
"""
# Starts the task, waits until its program is answered with $1, changes the rules, and waits for $2.
AROUND = """
"{exeat}" run --quiet --rules "{rules}" -- sh loop.sh & task=$!
until grep -qx $1 said; do sleep 0.05; kill -0 $task || exit 9; done
cp "{rules}.new" "{rules}.tmp"; mv "{rules}.tmp" "{rules}"
{until}
touch stop; wait $task
"""
OTHERS = "version: 1\nname: guard\nrules: []\n"


def _reloaded(someone, first, second, answers, until):
    rules = someone.write(someone.home / "rules.yaml", first)
    someone.write(someone.home / "rules.yaml.new", second)
    someone.write(someone.work / "loop.sh", LOOP)
    someone.write(someone.work / "said", "")
    exeat = Path(sys.executable).with_name("exeat")
    around = AROUND.format(exeat=exeat, rules=rules, until=until)
    done = someone.run(["bash", "-c", around, "bash", *answers])
    assert done.returncode == 0, done.stderr.decode()


@harness.as_a_user
def test_reload_applies_to_command_rules(someone, guarded):
    until = "until grep -qx $2 said; do sleep 0.05; kill -0 $task || exit 9; done"
    _reloaded(someone, RULES, OTHERS, ("no", "yes"), until)
    assert {event["rules"][0] for event in someone.events() if event["kind"] == "command.decided"} == {"guard:no-apply"}


def test_command_rules_added_to_an_unsupervised_task_are_reported(someone, guarded):
    """Its filter was made without: no program of it waits for anybody."""
    until = 'until grep -rq "rules.loaded.*previous" "$HOME/.local/state/exeat/journal"; do sleep 0.05; done'
    _reloaded(someone, OTHERS, RULES, ("yes", "yes"), until)
    faults = [event["fault"] for event in someone.events() if event["kind"] == "gate.error"]
    assert [(fault["where"], fault["detail"]) for fault in faults] == [
        ("watcher", "the rules have `commands` now; they apply to tasks that start from now on")
    ]
    assert _told(someone) == []


def test_dry_run_says_that_programs_are_held(someone, guarded):
    rules = someone.home / "rules.yaml"
    done = someone.exeat("run", "--dry-run", "--rules", rules, "--", "true")
    assert b"hold each program start, and match it against 7 `commands` of the rules" in done.stdout
    rules.write_text(OTHERS)
    assert b"hold each program" not in someone.exeat("run", "--dry-run", "--rules", rules, "--", "true").stdout
