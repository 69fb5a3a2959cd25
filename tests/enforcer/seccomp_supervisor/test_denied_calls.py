"""What a task's filter refuses is named in the journal, as root and as an ordinary user, however much of it there is."""

import sys
from pathlib import Path

from enforcer.sandbox.identity import FIRST_ID
from enforcer.system.started_by import starter_uid
from tests.support import harness

RULES = "version: 1\nname: nothing\nrules: []\n"

# The probes are what runtimes try and do without: nobody is told of them.
INSIDE = r"""
import ctypes, errno, fcntl, os, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    libc.syscall(number, *arguments)
    return errno.errorcode.get(ctypes.get_errno(), "0")
X86 = os.uname().machine == "x86_64"
probes = [call(425, 4, 0), call(435, 0, 0), call(437, -100, 0, 0, 0), call(467 + 100), call(298 if X86 else 241)]
assert probes == ["ENOSYS"] * 4 + ["EPERM"], probes
seen = [call(165 if X86 else 40, 0, 0, 0, 0, 0), call(321 if X86 else 280, 0, 0, 0)]
for family in (40, 17):
    try: socket.socket(family, socket.SOCK_RAW if family == 17 else socket.SOCK_STREAM)
    except OSError as error: seen.append(errno.errorcode[error.errno])
try: os.chmod(sys.argv[0], 0o4755)
except OSError as error: seen.append(errno.errorcode[error.errno])
print(*seen, flush=True)
def flood():
    for _ in range(int(sys.argv[1])): call(308 if X86 else 268, 0, 0)
threads = [threading.Thread(target=flood) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(call(308 if X86 else 268, 0, 0))
"""


def test_denied_calls_are_named_once_and_counted(someone):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    someone.write(someone.work / "inside.py", INSIDE)
    done = someone.exeat("run", "--quiet", "--rules", rules, "--", "python3", "inside.py", "500")
    assert done.stdout.decode().splitlines() == ["EPERM EPERM EAFNOSUPPORT EAFNOSUPPORT EPERM", "EPERM"], done.stderr
    told = [event for event in someone.events() if event["kind"] == "syscall.denied"]
    assert [event["call"] for event in told][:2] == ["mount", "bpf"]
    assert sorted(event["call"] for event in told) == ["bpf", "chmod", "mount", "setns", "socket"]
    for event in told:
        assert event["outcome"] == "blocked"
        assert "python3" in event["process"]["exe"]
        assert event["process"]["argv"] == ["python3", "inside.py", "500"]
        uid, inside = event["process"]["uid"], event["process"]["sandbox_uid"]
        assert (uid == harness.UID, inside) == (True, 0) if someone.user else (uid > FIRST_ID, inside) == (True, 1000)
    [started] = [event for event in someone.events() if event["kind"] == "task.started"]
    assert started["started_by"]["uid"] == (harness.UID if someone.user else starter_uid())
    assert started["workspace"] == str(someone.work)


def test_flood_of_denied_calls_blocks_nothing_outside(someone):
    """The supervisor is another process: it hears a signal at once."""
    rules = someone.write(someone.home / "rules.yaml", RULES)
    someone.write(someone.work / "inside.py", INSIDE)
    exeat = Path(sys.executable).with_name("exeat")
    script = (
        f"{exeat} run --quiet --rules {rules} -- python3 inside.py 1000000000 > out & task=$!; "
        "until grep -q EPERM out; do sleep 0.1; done; sleep 0.5; kill -TERM $task; wait $task; echo ended $?"
    )
    done = someone.run(["bash", "-c", script])
    assert done.stdout == b"ended 143\n", done.stderr
    assert [event["call"] for event in someone.events() if event["kind"] == "syscall.denied"].count("setns") == 1
