"""What a task could leave behind so that the next start, with other settings, opens something for it."""

import contextlib
import errno
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from enforcer.sandbox import init
from enforcer.sandbox.path_scan import make_directory, make_file
from enforcer.workspace.protected_changes import Globs
from enforcer.workspace.protected_files import globs_when_reviewed
from tests.support import harness

RULES = "version: 1\nname: nothing\nsandbox: {sandbox}\nrules: []\n"


def rules(someone, **sandbox):
    return someone.write(someone.home / "rules.yaml", RULES.format(sandbox=json.dumps(sandbox or {"user": "task"})))


def run(someone, file, *words, options=()):
    return someone.exeat("run", "--no-service", "--quiet", "--rules", file, *options, "--", *words)


def own(someone, path):
    if someone.user:
        os.chown(path, harness.UID, harness.UID)
    return path


def test_link_in_a_cache_leads_no_other_task_to_the_host(someone):
    """Files can't say caches that lie in each other; options and files together must not either."""
    victim = someone.home / "victim"
    victim.mkdir(mode=0o700)
    own(someone, victim)
    left = f"ln -s /old{victim} ~/.cache/pip; echo left"
    first = run(someone, rules(someone), "sh", "-c", left, options=["--cache", "all=~/.cache"])
    assert first.stdout == b"left\n", first.stderr
    file = rules(someone, caches={"pip": "~/.cache/pip/http"})
    second = run(someone, file, "true", options=["--cache", "all=~/.cache"])
    assert (second.returncode, b"overlaps" in second.stderr) == (2, True), second.stderr
    assert list(victim.iterdir()) == []
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700


def test_mode_of_a_cache_or_review_locks_nobody_out(someone):
    file = rules(someone, caches={"one": "~/one", "two": "~/two"}, workspace="review", user="root")
    script = "echo kept > ~/one/x; chmod 777 ~/one; chmod 0 ~/two; mkdir d; echo x > d/new; chmod 0 d .; echo did"
    first = run(someone, file, "sh", "-c", script)
    assert first.stdout == b"did\n", first.stderr
    second = run(someone, file, "sh", "-c", "cat ~/one/x; ls ~/two; stat -c %a ~/one ~/two")
    assert second.stdout == b"kept\n700\n700\n", second.stderr
    changes = json.loads(someone.exeat("changes", "sh", "--format", "json").stdout)["changes"]
    assert [change["path"] for change in changes] == ["d", "d/new"]


def test_hidden_name_behind_an_unlistable_directory_stays_hidden(someone):
    shown = someone.home / "shown"
    for top in (shown, someone.work):
        someone.write(top / "closed" / ".env", "secret")
        os.chown(top / "closed", 4242, 4242)
        (top / "closed").chmod(0o711)
    own(someone, shown)
    words = ["sh", "-c", f"cat {shown}/closed/.env closed/.env"]
    for mode in ("direct", "review"):
        file = rules(someone, hide=["**/.env"], read=[str(shown)], workspace=mode)
        done = run(someone, file, *words)
        assert (done.stdout, done.stderr.count(b"Permission denied")) == (b"", 2), done.stderr


@contextlib.contextmanager
def executor():
    pid, process = init.start()
    with contextlib.closing(process):
        yield process
    os.waitpid(pid, 0)


def test_no_mount_follows_a_link_of_another_task(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "link").symlink_to(outside)
    for attempt, path in (
        (make_directory, "link/new"),
        (make_directory, "link"),
        (make_file, "link/new"),
        (make_file, "link"),
    ):
        with (
            executor() as one,
            pytest.raises(OSError, match="through no symbolic link: Too many levels of symbolic links"),
        ):
            one.run(attempt(one.calls, str(tmp_path / path)))
    assert list(outside.iterdir()) == []
    with executor() as one:
        for descriptor in one.run(
            make_directory(one.calls, f"{tmp_path}/a/b"), make_file(one.calls, f"{tmp_path}/a/c")
        ):
            os.close(descriptor)
    assert ((tmp_path / "a/b").is_dir(), (tmp_path / "a/c").is_file()) == (True, True)


def test_socket_made_during_a_review_is_unreachable(someone):
    """Where a workspace is written directly it does: docs/reference/sandbox.md says so."""
    script = (
        "import os, socket\nprint('ready', flush=True); input()\n"
        "for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "    try: socket.socket(socket.AF_UNIX, kind).connect('late.sock'); print('REACHED')\n"
        "    except OSError as error: print(error.errno)\n"
    )
    words = ["run", "--no-service", "--quiet", "--rules", rules(someone), "--review", "--", "python3", "-c", script]
    argv = [str(Path(sys.executable).with_name("exeat")), *map(str, words)]
    task = subprocess.Popen(
        harness.as_user(argv, someone.home) if someone.user else argv,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=someone.work,
        env={**os.environ, "HOME": str(someone.home), "PYTHONPATH": str(harness.PROJECT)},
    )  # fmt: skip
    assert task.stdout.readline() == "ready\n"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(someone.work / "late.sock"))
        os.chmod(someone.work / "late.sock", 0o777)
        server.listen()
        said = task.communicate("go\n", timeout=30)[0]
    assert said.split() == [str(errno.ECONNREFUSED)] * 2


FLIP = """
import ctypes, os, sys, threading
os.makedirs(".git/hooks"); open(".git/hooks/own", "w").close(); open(".git/config", "w").close(); open(".envrc", "w").close()
os.symlink("../home/victim", "link"); os.symlink("../home/victim/config", "file"); os.mkdir("other")
rename, done, flips = ctypes.CDLL(None).renameat2, [], 0
threading.Thread(target=lambda: (sys.stdin.readline(), done.append(True))).start()
print("ready", flush=True)
while not done:
    for one, two in ((b".git", b"link"), (b".envrc", b"file"), (b".git/hooks", b"other")):
        flips += not rename(-100, one, -100, two, 2)  # RENAME_EXCHANGE
print(flips)
"""


@pytest.mark.parametrize("mode", ["direct", "review"])
def test_swapped_directories_lead_no_start_outside(someone, mode):
    """What a start covers, notes and mounts is swapped meanwhile: it is refused, or has nothing of where the links lead."""
    for name in ("hooks/secret", "config"):
        own(someone, someone.write(someone.home / "victim" / name, "SECRET\n").parent)
    words = ["run", "--no-service", "--quiet", "--rules", rules(someone), "--", "python3", "-c", FLIP]
    argv = [str(Path(sys.executable).with_name("exeat")), *map(str, words)]
    task = subprocess.Popen(
        harness.as_user(argv, someone.home) if someone.user else argv,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=someone.work,
        env={**os.environ, "HOME": str(someone.home), "PYTHONPATH": str(harness.PROJECT), "EXEAT_CONTROL": "/dev/null/none"},
    )  # fmt: skip
    assert task.stdout.readline() == "ready\n"
    script = (
        "for n in 1 2 3 4 5 6; do cat .git/hooks/secret .git/config .envrc other/secret link/config file;"
        " echo x >>.git/hooks/new; echo x >>.git/config; echo x >.envrc; done 2>/dev/null; grep -c /victim /proc/self/mountinfo"
    )
    found = [
        run(someone, rules(someone), "sh", "-c", script, options=[f"--{mode}"][: mode == "review"]) for _ in range(3)
    ]
    flips = int(task.communicate("\n", timeout=60)[0])
    assert flips > 100
    for done in found:
        assert done.returncode in {1, 2, 125}, (done.stdout, done.stderr)
        assert b"SECRET" not in done.stdout
        assert done.stdout.split()[-1:] in ([b"0"], []), (done.stdout, done.stderr)
    kept = (path.read_bytes() for path in (someone.home / ".local/state/exeat/changes").rglob("*") if path.is_file())
    assert not any(b"SECRET" in content for content in kept)
    victim = someone.home / "victim"
    assert {str(path.relative_to(victim)): path.read_text() for path in victim.rglob("*") if path.is_file()} == {
        "hooks/secret": "SECRET\n",
        "config": "SECRET\n",
    }


def test_git_reads_no_configuration_of_the_task(someone):
    """`commondir` is where Git takes its configuration from, of a repository and of each worktree, wherever that lies."""
    for words in ("init -q .", "commit -q --allow-empty -m one", "worktree add -q ../home/tree"):
        config = ("-c", "user.name=x", "-c", "user.email=x", "-c", "safe.directory=*")
        someone.run(["git", *config, *words.split()]).check_returncode()
    script = """
        mkdir other; cp -r .git/HEAD .git/refs .git/objects other; printf '[core]\\n\\tfsmonitor = touch RUN\\n' > other/config
        echo ../other > .git/commondir; echo ../../../other > .git/worktrees/tree/commondir || echo covered
    """
    done = run(someone, rules(someone), "sh", "-c", script)
    assert done.stdout == b"covered\n", done.stderr
    assert b"quarantined (.git/commondir)" in done.stderr
    assert not (someone.work / ".git" / "commondir").exists()
    status = someone.run(["git", "-C", someone.home / "tree", "status", "-s"])
    assert (status.returncode, status.stdout) == (0, b""), status.stderr
    assert not (someone.home / "tree" / "RUN").exists()
    assert Globs(globs_when_reviewed(())).match("deep/.git/worktrees/x/commondir")
