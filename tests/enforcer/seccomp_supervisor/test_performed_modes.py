"""Set-id bits in real sandboxes: directories have them as on any machine, and no file ever has one."""

import os
import stat
import sys
from pathlib import Path

import pytest

from enforcer.seccomp_supervisor import performed_calls
from tests.support import harness

PYTHON = Path(sys.base_prefix) / "bin" / "python3"
RULES = "version: 1\nname: nothing\nrules: []\n"
# What is done, and the mode that `d` (or what is named behind it) has then.
WORK = [
    ("mkdir d; chmod 2755 d", "d", 0o2755),
    ("chmod 755 d", "d", 0o2755),  # coreutils leave a directory's set-id bits alone unless they are named
    ("chmod g-s d", "d", 0o755),
    ("chmod g+s d", "d", 0o2755),
    ("mkdir d/below", "d/below", 0o2755),  # the kernel's own doing: inode(7)
    ("cp -a d copied", "copied", 0o2755),
    ("rsync -a d/ synced", "synced", 0o2755),
    ("tar -cf - d | tar -xpf - --one-top-level=packed", "packed/d", 0o2755),
    ("install -d -m 2775 installed", "installed", 0o2775),
    ("mkdir -m 2750 made", "made", 0o2750),
    (
        "git init -q --shared=group shared && cd shared && echo x > f && git add f && cd ..",
        "shared/.git/objects",
        0o2775,
    ),
    ('$PYTHON -c \'import shutil; shutil.copytree("d", "tree")\'', "tree", 0o2755),
    ("$PYTHON -c 'import os; os.fchmod(os.open(\"d\", 0), 0o2711)'", "d", 0o2711),
    ('$PYTHON -c \'import os; os.chmod("d", 0o2700, dir_fd=os.open(".", 0))\'', "d", 0o2700),
    ("ln -s d link; chmod 2710 link", "d", 0o2710),
    ("chmod 2701 /proc/self/cwd/d", "d", 0o2710),  # what a magic link leads to is nobody's for us: refused
    ("chmod u+s d", "d", 0o6710),  # of no meaning on a directory
]
FILES = """
import contextlib, os, shutil, threading
open("f", "w").close(); os.mkdir("real"); os.symlink("f", "to_file"); os.mkfifo("fifo")
def attempts():
    for mode in (0o2755, 0o4755, 0o6755):
        for path in ("f", "to_file", "fifo", "real/../f", os.path.abspath("f"), "/proc/self/cwd/f"):
            yield lambda: os.chmod(path, mode)
        yield lambda: os.fchmod(os.open("f", os.O_RDONLY), mode)
        yield lambda: os.chmod("f", mode, dir_fd=os.open(".", os.O_RDONLY))
        yield lambda: os.chmod(f"/proc/self/fd/{os.open('f', os.O_RDONLY)}", mode)
        yield lambda: shutil.copymode("/usr/bin/su", "f")
for act in attempts():
    with contextlib.suppress(OSError):
        act()
        print("MADE", flush=True)
# A name that is a directory when it is looked at, and a file when it is changed.
over = threading.Event()
def swap():
    while not over.is_set():
        for a, b in (("real", "aside"), ("f", "real"), ("real", "f"), ("aside", "real")):
            os.rename(a, b)
thread = threading.Thread(target=swap); thread.start()
for _ in range(400):
    with contextlib.suppress(OSError):
        os.chmod("real", 0o2755)
over.set(); thread.join()
print("done")
"""


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", RULES)


def _run(someone, rules, *words):
    options = ("run", "--quiet", "--rules", rules, "--read", sys.base_prefix)
    done = someone.exeat(*options, "--env", f"PYTHON={PYTHON}", "--", *words)
    assert done.returncode == 0, done.stderr.decode()
    return done


@pytest.mark.parametrize("reviewed", [False, True], ids=["directly", "reviewed"])
def test_set_id_bits_of_directories_work_as_usual(someone, rules, reviewed):
    if reviewed:
        someone.write(rules, RULES + "sandbox: {workspace: review}\n")
    script = "".join(f"{{ {act}; }} 2>/dev/null; stat -c %a {path} 2>&1\n" for act, path, _ in WORK)
    done = _run(someone, rules, "sh", "-c", f"umask 022\n{script}true")
    found = [int(line, 8) if line.isdigit() else line for line in done.stdout.decode().splitlines()]
    assert dict(zip([act for act, _, _ in WORK], found, strict=True)) == {act: mode for act, _, mode in WORK}


def test_no_file_gets_a_set_id_bit(someone, rules):
    done = _run(someone, rules, PYTHON, "-c", FILES)
    assert done.stdout == b"done\n"
    found = [path for path in someone.work.rglob("*") if not path.is_dir() and path.lstat().st_mode & 0o6000]
    assert found == []


def test_files_of_others_keep_their_mode(someone, rules):
    """A directory that the task may write, and that is somebody else's; one that it may not write; a covered one."""
    others = someone.work / "others"
    others.mkdir()
    os.chown(others, 4242, 4242)
    others.chmod(0o777)
    shown = someone.home / "shown"
    shown.mkdir()
    if someone.user:
        os.chown(shown, harness.UID, harness.UID)
    script = f"for d in others {shown} /usr /etc /proc /; do chmod 2755 $d 2>/dev/null && echo CHANGED $d; done; true"
    done = someone.exeat("run", "--quiet", "--rules", rules, "--read", shown, "--", "sh", "-c", script)
    assert done.stdout == b"", done.stderr.decode()
    assert stat.S_IMODE(others.stat().st_mode) == 0o777


@pytest.mark.parametrize(
    ("groups", "mode"),
    [([0], 0o2755), ([1], 0o755)],
    ids=["in its group", "not in its group, where the kernel leaves the bit out"],
)
def test_set_gid_needs_group_membership(tmp_path, groups, mode):
    harness.needs_root()
    os.chown(tmp_path, 0, 0)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        call = performed_calls.Notification(0, 0, 0, (directory, 0o2755))
        performed_calls.change_mode(directory, "fchmod", call, (0, frozenset(groups)))
    finally:
        os.close(directory)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode


def test_directory_of_another_user_is_refused(tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)
    call = performed_calls.Notification(0, 0, 0, (directory, 0o2755))
    try:
        with pytest.raises(PermissionError):
            performed_calls.change_mode(directory, "fchmod", call, (os.getuid() + 1, frozenset([0])))
    finally:
        os.close(directory)
