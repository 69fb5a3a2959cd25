"""A task's process gives up the same whether C or the interpreter has it begin, and starts nothing where it can't."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enforcer.sandbox import init
from tests.support import harness

SCRIPT = Path(__file__).with_name("begun.py")
RULES = "version: 1\nname: begun\nrules: []\n"
# What a process is to the kernel; what of it each line shows is in proc_pid_status(5).
PROBE = """
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|SigBlk|SigIgn|SigCgt)' /proc/self/status
for file in self/oom_score_adj 1/oom_score_adj self/uid_map self/gid_map self/setgroups; do cat /proc/$file; done
ls -l /proc/self/fd | sed -E 's/.* ([0-9]+ ->)/\\1/; s/[0-9]{3,}/N/g'
ls /proc/1/fd 2>&1; pwd; umask; ulimit -a; ulimit -Ha; ps -o sid= -p $$ | grep -qx " *$$" && echo leads a session
mknod whiteout c 0 0 2>&1; kill -s USR1 $$; echo USR1 is ignored; printenv | sort
"""
LINES = {
    "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
    "NoNewPrivs:\t1", "Seccomp:\t2", "SigBlk:\t0000000000000000", "1000", "deny",
    "leads a session", "USR1 is ignored",
}  # fmt: skip


def run(someone, way, *command, options=()):
    argv = [sys.executable, str(SCRIPT), way, "run", "--no-service", "--quiet"]
    argv += ["--rules", str(someone.write(someone.home / "rules.yaml", RULES)), *options, "--", *command]
    if someone.user:
        argv = harness.as_user(argv, someone.home)
    env = {**os.environ, "PYTHONPATH": str(harness.PROJECT), "HOME": str(someone.home)}
    ignoring = ["env", "--ignore-signal=USR1", *argv]
    return subprocess.run(
        ignoring, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, cwd=someone.work, check=False
    )


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    if not init.COMPILED:
        harness.missing("the program that `python -m enforcer.sandbox.compiled.build` makes")


@pytest.mark.parametrize("way", ["compiled", "interpreted"])
def test_overlong_program_name_is_not_found(someone, way):
    """And longer than all that its process is told at once."""
    for name in ("x" * 100_000, "/" + "x" * 100_000):
        done = run(someone, way, name)
        assert (done.returncode, done.stderr.count("File name too long")) == (126, done.stderr.count("cannot be"))


# Bytes of one word, and how many places its program is looked for in before it is found.
WORDS = [(0, 0), (8_000, 0), (14_000, 1), (16_500, 20), (20_000, 0), (100_000, 40), (12_000, 40)]


@harness.as_a_user
@pytest.mark.parametrize("way", ["compiled", "interpreted"])
def test_arguments_and_variables_arrive_unchanged(someone, way):
    """Some go along with what is executed, others lie in memory before: nothing of it can be told."""
    for size, places in WORDS:
        path = "".join(f"/nowhere{number}:" for number in range(places)) + "/usr/bin:/bin"
        script = 'printf "%s %s %s %s\\n" "$#" "${#1}" "$2" "$WORD"; printenv | grep -c .'
        given = ("--env", f"PATH={path}", "--env", "WORD=ü = ", "--env", f"LONG={'y' * size}")
        done = run(someone, way, "sh", "-c", script, "sh", "x" * size, "last", options=given)
        lines = done.stdout.splitlines()
        assert (done.stderr, lines[0]) == ("", f"2 {size} last ü = ")
        assert int(lines[1]) > 5


def test_task_gives_up_the_same_privileges(someone):
    compiled, interpreted = (run(someone, way, "sh", "-c", PROBE) for way in ("compiled", "interpreted"))
    assert (compiled.stderr, compiled.returncode) == ("", 0)
    assert compiled.stdout == interpreted.stdout
    lines = compiled.stdout.splitlines()
    assert LINES - set(lines) == set()
    assert [line for line in lines if "Permission denied" in line or "not permitted" in line] == [
        "ls: cannot open directory '/proc/1/fd': Permission denied",  # init can't be dumped
        "mknod: whiteout: Permission denied",  # by Landlock: to the kernel anybody may make one
    ]


@pytest.mark.parametrize("someone", ["root"], indirect=True)
def test_errors_of_execve_have_the_same_message(someone):
    script = someone.work / "script"
    script.write_text("#!/nowhere/at-all\n")
    script.chmod(0o755)
    said = "exeat: `./script`: its interpreter is not in the sandbox (No such file or directory)"
    for way in ("compiled", "interpreted"):
        done = run(someone, way, "./script")
        assert (done.returncode, done.stderr.splitlines()[0]) == (126, said), way


@pytest.mark.parametrize("someone", ["root"], indirect=True)
def test_failed_step_is_named_and_nothing_is_executed(someone):
    done = run(someone, "hindered", "sh", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "could not give up its privileges: rt_sigprocmask: Invalid argument" in done.stderr
