"""Devices that a task is given: by name, as nodes of its own, and nothing beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import harness

EXEAT = Path(sys.executable).with_name("exeat")
# A host of our own to look at: cards, a disk and memory; and a `kvm` that everybody may use, or only root.
SETUP = """
set -e
work=$PWD
mount -t tmpfs -o mode=755 host /mnt
cd /mnt
mkdir dri pts shm accel
while read name major minor mode; do mknod -m $mode $name c $major $minor; done <<END
null 1 3 666
zero 1 5 666
full 1 7 666
random 1 8 666
urandom 1 9 666
tty 5 0 666
ptmx 5 2 666
mem 1 1 666
nvidia1 1 1 666
kvm 10 232 MODE
nvidia0 195 0 666
nvidiactl 195 255 666
nvidia-uvm 234 0 666
nvidia-modeset 195 254 666
dri/card0 226 0 666
dri/renderD128 226 128 666
dri/renderD129 1 1 666
END
mknod sda b 8 0
WITHOUT
mount --bind /dev/pts pts
mount --move /mnt /dev
cd "$work"
exec "$@"
"""
NODES = ["full", "null", "random", "tty", "urandom", "zero"]
LOOK = """
import json, os, stat
nodes = {}
for top, _, names in os.walk("/dev"):
    for name in names:
        status = os.lstat(f"{top}/{name}")
        if stat.S_ISCHR(status.st_mode) and not top.startswith("/dev/pts"):
            nodes[os.path.relpath(f"{top}/{name}", "/dev")] = [os.major(status.st_rdev), os.minor(status.st_rdev), status.st_ino]
def tried(name):
    try:
        os.close(os.open(name, os.O_RDWR))
    except OSError as error:
        return error.strerror
def wrote(name):
    try:
        os.utime(name)
    except OSError as error:
        return error.strerror
print(json.dumps([nodes, tried("/dev/kvm"), wrote("/dev/kvm")]))
"""


@pytest.fixture
def given(someone):
    """Run a task on that host, with options; what it found, or what was said."""
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")

    def run(*options, mode="666", without=""):
        words = [str(EXEAT), "run", "--quiet", "--rules", rules, *options, "--", "/usr/bin/python3", "-c", LOOK]
        words = harness.as_user(words, someone.home) if someone.user else words
        setup = SETUP.replace("MODE", mode).replace("WITHOUT", f"rm -f {without}")
        argv = ["unshare", "--mount", "sh", "-c", setup, "sh", *map(str, words)]
        env = {**os.environ, "HOME": str(someone.home), "EXEAT_CONTROL": "/dev/null/none"}
        done = subprocess.run(argv, capture_output=True, env=env, cwd=someone.work, timeout=60, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr.decode()

    return run


def test_named_devices_work_in_the_sandbox(given):
    nodes, opened, wrote = given("--device", "kvm", "--device", "/dev/dri/renderD128")
    assert {name: number[:2] for name, number in nodes.items() if name not in NODES} == {
        "kvm": [10, 232],
        "dri/renderD128": [226, 128],
    }
    assert opened in {None, "No such device", "No such device or address"}, "as far as this machine has one"
    assert wrote in {"Read-only file system", "Permission denied"}


def test_no_device_without_a_setting(given):
    nodes, opened, _ = given()
    assert (sorted(nodes), opened) == (NODES, "No such file or directory")


def test_gpu_is_the_compute_and_render_nodes(given):
    nodes, _, _ = given("--device", "gpu", without="nvidia1 dri/renderD129")
    assert sorted(set(nodes) - set(NODES)) == ["dri/renderD128", "nvidia-uvm", "nvidia0", "nvidiactl"]


@pytest.mark.parametrize("name", ["nvidia1", "dri/renderD129"])
def test_device_with_other_numbers_is_refused(given, name):
    """A link, or another node of that name, would be the host's memory."""
    assert f"`/dev/{name}` is not the device of that name: its number is 1:1" in given("--device", name)


def test_missing_device_is_an_error(given):
    assert "`/dev/kfd` can't be given to a task: no such file or directory" in given("--device", "kfd")
    cards = "nvidia* dri/*"
    assert "this host has no node of a card" in given("--device", "gpu", without=cards)


def test_user_without_access_cannot_pass_a_device_on(given, someone):
    """Root may; a user gives no more than they have."""
    said = given("--device", "kvm", mode="600")
    if someone.user:
        assert "you may not use `/dev/kvm` yourself; become a member of its group" in said
    else:
        assert said[0]["kvm"][:2] == [10, 232]


def test_tasks_of_root_have_separate_device_nodes(given, someone):
    """Locks and watches belong to the inode: a shared one would be a channel."""
    host = os.stat("/dev/null").st_ino
    [(first, _, _), (second, _, _)] = [given("--device", "kvm") for _ in range(2)]
    assert someone.user or (first["null"][2] != host and second["null"][2] != host)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/kvm", "is a device; write `--device kvm`, or `devices: [kvm]` in a rule file"),
        ("/dev/mem", "can't be given to a task: it leads to the host's memory"),
        ("/dev/sda", "can't be given to a task: a disk holds the files of the host"),
    ],
)
@pytest.mark.parametrize("option", ["--read", "--write"])
def test_device_given_as_a_file_is_an_error_with_a_remedy(given, path, said, option):
    assert said in given(option, path)
