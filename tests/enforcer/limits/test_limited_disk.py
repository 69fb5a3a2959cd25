"""Tasks that write all they can: into their room in memory, and into the layer of a reviewed workspace."""

import re
import time

from tests.enforcer.limits.limits_harness import IMPATIENT, PYTHON, told
from tests.support import harness

ROOM = """
for place in /tmp /var/tmp /dev/shm "$HOME" "/run/user/$(id -u)"; do
  dd if=/dev/zero of="$place/x" bs=64k count=24 2>&1 | grep -c 'No space left'
  stat -c '%s %D' "$place/x"
done
rm -f /tmp/x; i=0
while [ $i -lt 3000 ] && (: > /tmp/f$i) 2>/dev/null; do i=$((i+1)); done
[ $i -gt 1000 ] && [ $i -lt 1100 ] && echo as many files as pages
"""


def test_tmpfs_mounts_share_one_quota(limited):
    done = limited({"limits": {"disk": "4MB"}}, "sh", "-c", ROOM)
    *lines, files = done.stdout.decode().splitlines()
    assert files == "as many files as pages", done
    assert lines[::2] == ["0", "0", "1", "1", "1"]
    sizes, devices = zip(*(line.split() for line in lines[1::2]), strict=True)
    assert len(set(devices)) == 1
    assert sum(map(int, sizes)) == 4 << 20


FULL = r"""
import os, time
open("/proc/self/comm", "w").write("\033[2J`x`")
with open("/tmp/full", "wb", buffering=0) as file:
    try:
        while file.write(bytes(1 << 16)):
            pass
    except OSError as error:
        print(error.strerror)
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.strerror)
try:
    while True:
        if os.fork() == 0:
            time.sleep(600)
except OSError as error:
    print(error.strerror, flush=True)
os.close(held.pop())
hidden = open("hidden", "wb", buffering=0)  # last: it is what the task is ended for
os.unlink("hidden")
hidden.write(bytes(6 << 20))
time.sleep(600)
"""


@harness.as_a_user
def test_full_tmpfs_is_recorded_once(someone, limited, means):
    """A full room, open files, processes that no cgroup counts, and what a reviewed workspace has without a name."""
    limits = {"disk": "4MB", "files": 64, "processes": 40}
    done = limited({"limits": limits, "workspace": "review"}, PYTHON, "-c", FULL, program=IMPATIENT)
    assert done.stdout.decode().splitlines() == [
        "No space left on device",
        "Too many open files",
        "Resource temporarily unavailable",
    ]
    assert done.returncode == 124, done
    room, layer = (event["detail"] for event in told(someone, "disk_limit"))
    assert room == "disk: no more could be written to home, /tmp and the like, it may be 4 MiB"
    assert re.fullmatch(r"disk: its changes take 6(\.0\d*)? MiB, they may take 4 MiB", layer)
    [files] = told(someone, "file_limit")
    assert files["detail"] == r"files: `\x1b[2J`x`` had 64 open, as many as it may at a time"
    [processes] = told(someone, "process_limit")
    if means["processes"] == "rlimit":
        assert processes["detail"] == "processes: it had as many as it may, 40"
    said = [line.partition(" reached a limit: ")[2] for line in done.stderr.decode().splitlines()]
    assert sorted(filter(None, said)) == sorted([room, layer, files["detail"], processes["detail"]])


# What a task does so that nobody sees what it writes; then it goes on writing.
HIDES = r"""
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
os.makedirs("closed/inner")
os.truncate(os.open("closed/sparse", os.O_CREAT | os.O_RDWR), 1 << 40)
for number in range(50):
    os.link("closed/sparse", f"closed/{number}")
os.symlink("/", "closed/everything")
into = os.open("closed/inner/data", os.O_CREAT | os.O_WRONLY)
try:
    os.posix_fallocate(os.open("closed/ahead", os.O_CREAT | os.O_RDWR), 0, 1 << 16)
    os.truncate("closed/ahead", 0)
except OSError as error:
    print(error)
os.chmod("closed/inner", 0)
os.chmod("closed", 0)
os.chmod(".", 0)
print("ready", flush=True)
while True:
    os.write(into, bytes(1 << 17))
"""


def test_review_changes_are_bounded(someone, limited):
    done = limited({"limits": {"disk": "8MB"}, "workspace": "review"}, PYTHON, "-c", HIDES)
    assert (done.returncode, done.stdout) == (124, b"ready\n"), done
    [event] = told(someone, "disk_limit")
    assert event["outcome"] == "blocked"
    assert event["detail"].startswith("disk: its changes take ")
    assert event["detail"].endswith(" MiB, they may take 8 MiB")
    assert f"exeat: the task reached a limit: {event['detail']}\n".encode() in done.stderr
    assert b"exeat: its changes are kept (" in done.stderr
    [upper] = (someone.home / ".local/state/exeat/changes").glob("*/layers/upper")
    assert (upper / "closed/inner/data").stat().st_size > 8 << 20
    assert [each["kind"] for each in someone.events()][-1] == "changes.kept"


def test_early_writes_are_recorded_at_the_end(someone, limited):
    done = limited(
        {"limits": {"disk": "1MB"}, "workspace": "review"}, "sh", "-c", "head -c 3000000 /dev/zero > x; exit 5"
    )
    assert done.returncode in (5, 124), done  # a slow machine has looked
    [event] = told(someone, "disk_limit")
    assert event["outcome"] == ("passed" if done.returncode == 5 else "blocked")
    assert b"exeat: the task reached a limit: disk: its changes take " in done.stderr


LOCKS = """
import fcntl, os, time
file = os.open("x", os.O_RDWR | os.O_CREAT)
os.unlink("x")
os.write(file, b"x")
for number in range(8000):
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * number)
for _ in range(8000):
    os.dup(file)
print("ready", flush=True)
time.sleep(600)
"""


def test_unlinked_file_is_found_despite_many_descriptors(limited):
    """Who looks at what is open also sees to the timeout."""
    began = time.monotonic()
    box = {"limits": {"files": 10000}, "timeout": "4s", "workspace": "review"}
    done = limited(box, PYTHON, "-c", LOCKS, program=IMPATIENT)
    assert (done.returncode, done.stdout) == (124, b"ready\n"), done
    assert time.monotonic() - began < 25
