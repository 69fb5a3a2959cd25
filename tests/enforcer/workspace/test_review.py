"""A task whose workspace is reviewed, run for real: what it can't do, what is kept, what comes of it."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.support import harness

RULES = "version: 1\nsandbox: {workspace: review}\nrules: [{id: none, to: nothing.example, action: allow}]\n"
OVERLAY_ESCAPES = Path(__file__).with_name("overlay_escapes.py")


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", RULES)


def run(someone, rules, *command, **more):
    words = ["--no-service", "--rules", rules, "--task", "agent", "--", *command]
    return someone.exeat("run", *words, **more)


def tree(path):
    found = {}
    for inner in sorted(path.rglob("*")):
        name = os.fsencode(str(inner.relative_to(path)))
        status = inner.lstat()
        content = inner.read_bytes() if inner.is_file() and not inner.is_symlink() else b""
        found[name] = (status.st_mode, status.st_uid, status.st_ino, content)
    return found


EXPECTED = {
    "opaque": {"hidden", "stored", "refused: 95", "refused: 1"},
    "trusted": {"refused: 1"},
    "redirect": {"hidden", "stored", "refused: 95", "refused: 1"},
    "metacopy": {"hidden", "stored", "refused: 95", "refused: 1"},
    "xwhiteout": {"hidden", "stored", "refused: 95", "refused: 1"},
    "whiteout": {"refused: 1", "refused: 13"},
    "rename whiteout": {"refused: 22", "refused: 1"},
    "device": {"refused: 1", "refused: 13"},
    "set-id": {"refused: 1"},
    "layers": {"not there"},
    "host socket": {"refused: 111"},
    "secret through a link": {"refused: 2"},
    "lower's redirect": {"[]"},
    "lower's metacopy": {"refused: 1"},
    "deep": {"did it"},
}


def test_reviewed_changes_stay_in_the_overlay_and_are_listed(someone, rules):
    outside = someone.home / "outside"
    outside.mkdir()
    someone.write(outside / "secret", "secret")
    for name, content in (("edited", "base\n"), ("deleted", "x"), ("mode", "m"), ("moved/in", "in")):
        someone.write(someone.work / name, content)
    someone.write(someone.work / "overlay_escapes.py", OVERLAY_ESCAPES.read_text())
    (someone.work / "to-outside").symlink_to(outside / "secret")
    # What another task, with this workspace to write directly, could have left for this one
    someone.write(someone.work / "lower-metacopy", "real\n")
    (someone.work / "lower-redirect").mkdir()
    os.setxattr(someone.work / "lower-redirect", "user.overlay.redirect", b"/moved")
    os.setxattr(someone.work / "lower-metacopy", "user.overlay.metacopy", b"")
    if someone.user:
        for path in (outside, someone.work / "moved", someone.work / "lower-redirect"):
            os.chown(path, 54321, 54321)
    before = tree(someone.work)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(someone.work / "host.sock"))
        os.chmod(someone.work / "host.sock", 0o777)
        server.listen()
        ended = run(someone, rules, "python3", "overlay_escapes.py", "x")
    (someone.work / "host.sock").unlink()
    assert ended.returncode == 0, ended.stderr.decode()
    results = json.loads(next(line for line in ended.stderr.splitlines() if line.startswith(b"{")))
    assert {name: said for name, said in results.items() if said not in EXPECTED[name]} == {}
    assert tree(someone.work) == before  # to the inode: nobody wrote there

    listed = json.loads(someone.exeat("changes", "agent", "--format", "json", "--stat").stdout)
    changes = {change["path"]: change for change in listed["changes"]}
    assert changes["out"]["leads_out"]
    assert changes["out"]["protected"]
    assert changes["moved/in"]["kind"] == "deleted"
    assert changes["moved-away/in"]["kind"] == "added"
    assert changes["fifo"]["kind"] == "left out"
    assert changes["mode"]["is"]["mode"] == "0000"
    assert {path for path in changes if "lower-" in path} == set()
    kept = [event for event in someone.events() if event["kind"] == "changes.kept"]
    assert len(kept) == 1
    assert kept[0]["paths"][0] == "d" * 200  # in the order of their names, and cut as every list is
    assert "1 left out" not in kept[0]["detail"]
    assert "left out" in kept[0]["detail"]

    accepted = someone.exeat("changes", "accept", "agent", "--protected", "out")
    assert accepted.returncode == 1, accepted.stderr.decode()
    assert b"left: fifo: devices, sockets and FIFOs" in accepted.stderr
    after = tree(someone.work)
    assert after[b"edited"][3] == after[b"second-name"][3] == b"base\nthe task's\n"
    assert after[b"edited"][2] != after[b"second-name"][2]
    assert b"deleted" not in after
    assert b"moved" not in after
    assert {b"not-utf8-\xff", b"name with\nnewline", b"moved-away/in"} <= set(after)
    assert {owner for name, (_, owner, *_) in after.items() if name != b"to-outside"} == {54321 if someone.user else 0}
    assert os.listxattr(someone.work / "plain") == os.listxattr(someone.work / "planted") == []
    assert (outside / "secret").read_text() == "secret"
    assert not any((someone.home / ".local/state/exeat/changes").iterdir())  # also what was nested too deep


# Nothing is copied up whose owner has no id in the overlay (EOVERFLOW)
ON_ANOTHERS = """
import errno, json, os
def tried(call):
    try:
        return call() or "did it"
    except OSError as error:
        return errno.errorcode[error.errno]
def put(path, mode):
    with open(path, mode) as file:
        file.write("the task's")
said = {
    "read": tried(lambda: open("theirs").read()),
    "append": tried(lambda: put("theirs", "a")),
    "overwrite": tried(lambda: put("theirs", "r+")),
    "truncate": tried(lambda: os.truncate("theirs", 0)),
    "chmod": tried(lambda: os.chmod("theirs", 0o777)),
    "touch": tried(lambda: os.utime("theirs")),
    "attribute": tried(lambda: os.setxattr("theirs", "user.x", b"x")),
    "link": tried(lambda: os.link("theirs", "linked")),
    "rename": tried(lambda: os.rename("theirs", "renamed")),
    "made in theirs": tried(lambda: put("their-directory/new", "w")),
    "deleted in theirs": tried(lambda: os.unlink("their-directory/in")),
    "deleted": tried(lambda: os.unlink("deleted")),
}
print(json.dumps(said))
"""


def test_files_of_others_are_readable_but_not_writable(someone, rules):
    """Whatever its mode. A task that is its directory's owner can delete it all the same, which is there to review."""
    for name in ("theirs", "deleted", "their-directory/in"):
        someone.write(someone.work / name, "another's\n").chmod(0o666)
    (someone.work / "their-directory").chmod(0o777)
    for path in someone.work.rglob("*"):
        os.chown(path, 4242, 4242)
    before = tree(someone.work)
    ended = run(someone, rules, "python3", "-c", ON_ANOTHERS)
    assert ended.returncode == 0, ended.stderr.decode()
    said = json.loads(ended.stdout)
    assert said.pop("read") == "another's\n"
    assert said.pop("deleted") == ("did it" if someone.user else "EOVERFLOW")
    assert {what: how for what, how in said.items() if how not in {"EACCES", "EPERM", "EOVERFLOW"}} == {}
    assert tree(someone.work) == before
    listed = someone.exeat("changes", "agent", "--format", "json")
    if someone.user:
        changes = json.loads(listed.stdout)["changes"]
        assert [(change["path"], change["kind"]) for change in changes] == [("deleted", "deleted")]
    else:
        assert listed.returncode != 0
        assert not any((someone.home / ".local/state/exeat/changes").iterdir())


def test_unchanged_review_leaves_nothing_and_killed_run_its_changes(someone, rules):
    someone.write(someone.work / "file", "base\n")
    ended = run(someone, rules, "cat", "file")
    assert ended.stdout == b"base\n"
    changes = someone.home / ".local/state/exeat/changes"
    assert not any(changes.iterdir())
    ended = run(someone, rules, "sh", "-c", "echo more >> file; kill -9 $$")
    assert b"its changes are kept (1 changed)" in ended.stderr
    assert (someone.work / "file").read_text() == "base\n"
    assert someone.exeat("changes", "accept", "agent").stdout == b"accepted: 1 changed\n"
    assert (someone.work / "file").read_text() == "base\nmore\n"


def test_state_directory_in_the_workspace_is_refused(someone, rules):
    state = someone.work / "state"
    someone.write(state / "x", "")
    if someone.user:
        os.chown(state, 54321, 54321)
    command = [Path(sys.executable).with_name("exeat"), "run", "--no-service", "--rules", rules, "--", "true"]
    ended = someone.run(["env", f"XDG_STATE_HOME={state}", *command])
    assert ended.returncode == 2
    assert b"which lies inside it" in ended.stderr


# The runner ($@) is started, something is done once its task has written, and again something
WHILE_IT_RUNS = """
work=$1 state=$HOME/.local/state/exeat/changes; shift; mkfifo "$HOME/in"
"$@" > "$HOME/said" < "$HOME/in" & pid=$!
exec 3> "$HOME/in"
until [ -s "$HOME/said" ]; do sleep 0.05; done
"""
KILL = "kill -9 $pid; wait"
EDIT = """
until cat "$state"/*/copies.jsonl 2>/dev/null | grep -q file; do sleep 0.05; done
sed -i s/1/host/ "$work/file"; echo go >&3; wait
"""


def meanwhile(someone, rules, what, task):
    command = [Path(sys.executable).with_name("exeat"), "run", "--no-service", "--rules", rules, "--task", "agent"]
    words = ["sh", "-c", WHILE_IT_RUNS + what, "sh", someone.work, *command, "--workspace", someone.work, "--"]
    someone.run([*words, "sh", "-c", task])


def test_killed_run_keeps_the_changes_of_its_task(someone, rules):
    someone.write(someone.work / "file", "base\n")
    meanwhile(someone, rules, KILL, "echo more >> file; echo new > new; echo ready; sleep 60")
    assert (someone.work / "file").read_text() == "base\n"
    listed = json.loads(someone.exeat("changes", "--format", "json").stdout)
    assert [row["state"] for row in listed] == ["1 added, 1 changed"]
    accepted = someone.exeat("changes", "accept", "agent")
    assert accepted.stdout == b"accepted: 1 added, 1 changed\n", accepted.stderr
    assert (someone.work / "file").read_text() == "base\nmore\n"


@harness.as_a_user
def test_host_edits_during_a_review_are_merged(someone, rules):
    someone.write(someone.work / "file", "1\n2\n3\n4\n")
    meanwhile(someone, rules, EDIT, "sed -i s/4/task/ file; echo ready; read go; sed -i s/3/3+/ file")
    assert (someone.work / "file").read_text() == "host\n2\n3\n4\n"
    accepted = json.loads(someone.exeat("changes", "accept", "agent", "--format", "json").stdout)
    assert [(change["path"], change["how"]) for change in accepted["changes"]] == [("file", "merged")]
    assert (someone.work / "file").read_text() == "host\n2\n3+\ntask\n"
