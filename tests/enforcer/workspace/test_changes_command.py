"""`exeat changes` as people use it: what it prints, its exit status, and what the journal has of it."""

import json
import os
import subprocess
from dataclasses import replace

import pytest

from enforcer.cli import main
from enforcer.system.state import state_directory
from enforcer.workspace.change_store import StoredChanges, directory, find
from tests.support.harness import whole_lines


@pytest.fixture
def changes(lab, capsysbinary):
    """Run `exeat changes`: its status, its output and its errors."""

    def run(*words):
        status = main(["changes", *words])
        captured = capsysbinary.readouterr()
        return status, captured.out.decode(), captured.err.decode()

    return run


def events(lab):
    lines = []
    for segment in sorted((lab.work.parent / "journal").glob("*/*.jsonl")):
        lines += [json.loads(line) for line in whole_lines(segment)]
    return [line for line in lines if line["kind"].startswith("changes.")]


def test_changes_are_shown_accepted_and_discarded(lab, changes):
    lab.write("a.txt", "one\ntwo\n")
    lab.write("gone", "bye\n")
    lab.write("picture", b"\0\1")
    lab.begin(protected=["ci.yml"])
    lab.task_writes("a.txt", "one\nTWO\x1b[31m\n", 0o755)
    lab.task_writes("picture", b"\0\1\2")
    lab.task_writes("ci.yml", "run: evil\n")
    lab.task_deletes("gone")
    (lab.upper / "out").symlink_to("/etc/passwd")

    assert changes() == (0, changes()[1], "")
    assert "2 added, 2 changed, 1 deleted" in changes()[1]
    status, said, _ = changes("agent")
    assert status == 0
    assert said == (
        "diff --exeat a/a.txt b/a.txt\nold mode 100644\nnew mode 100755\n--- a/a.txt\n+++ b/a.txt\n"
        "@@ -1,2 +1,2 @@\n one\n-two\n+TWO\\x1b[31m\n"
        "diff --exeat a/ci.yml b/ci.yml\n# protected: accepted only with `--protected ci.yml`\nnew file mode 100644\n"
        "--- /dev/null\n+++ b/ci.yml\n@@ -0,0 +1 @@\n+run: evil\n"
        "diff --exeat a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-bye\n"
        "diff --exeat a/out b/out\n# a link that may lead out of the workspace\n"
        "# protected: accepted only with `--protected out`\nnew file mode 120000\n"
        "--- /dev/null\n+++ b/out\n@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n"
        "diff --exeat a/picture b/picture\nBinary files differ: 2 bytes before, 3 bytes now\n"
    )
    assert changes("agent", "a.txt", "--stat")[1] == "changed  a.txt  +1 -1\n1 changed\n"
    value = json.loads(changes("1-2", "--format", "json", "--stat")[1])
    assert [(c["path"], c["kind"], c["protected"], c["leads_out"]) for c in value["changes"]] == [
        ("a.txt", "changed", False, False),
        ("ci.yml", "added", True, False),
        ("gone", "deleted", False, False),
        ("out", "added", True, True),
        ("picture", "changed", False, False),
    ]
    assert changes("cat", "agent", "a.txt") == (0, "one\nTWO\x1b[31m\n", "")

    assert changes("discard", "agent", "picture") == (0, "discarded: 1 changed\n", "")
    status, said, errors = changes("accept", "agent")
    assert (status, said) == (1, "accepted: 1 changed, 1 deleted\n")
    assert "left: ci.yml: it is protected: accept it with `--protected ci.yml`\n" in errors
    assert lab.files() == {"a.txt": "one\nTWO\x1b[31m\n", "picture": "\0\1"}
    assert changes("accept", "agent", str(lab.work / "ci.yml"), "--protected", "ci.yml")[0] == 0
    assert changes("discard", "agent")[0] == 0
    assert changes()[1] == "no task has pending changes\n"
    assert not any((state_directory() / "changes").iterdir())
    told = events(lab)
    assert [(event["kind"], event.get("paths")) for event in told] == [
        ("changes.discarded", ["picture"]),
        ("changes.accepted", ["a.txt", "gone"]),
        ("changes.merged", ["gone", "a.txt"]),
        ("changes.accepted", ["ci.yml"]),
        ("changes.merged", ["ci.yml"]),
        ("changes.discarded", ["out"]),
    ]
    assert (told[2]["cause"], told[2]["detail"]) == (told[1]["id"], "2 left")
    assert all("uid " in event["by"] and event["task"]["name"] == "agent" for event in told)
    segments = (lab.work.parent / "journal").glob("*/*.jsonl")
    written = [[json.loads(line)["kind"] for line in whole_lines(segment)] for segment in segments]
    ends = {kinds[-1] for kinds in written if any(kind.startswith("changes.") for kind in kinds)}
    assert ends == {"journal.sealed"}  # else whoever closed what it wrote is taken for killed
    assert not any("journal.repaired" in kinds for kinds in written)


def test_conflict_can_be_settled_as_the_message_says(lab, changes):
    lab.write("a b.txt", "one\n")
    lab.begin(protected=["ci.yml"])
    lab.task_writes("a b.txt", "task\n")
    lab.task_writes("ci.yml", "x\n")
    lab.write("a b.txt", "host\n")
    status, said, errors = changes("accept", "agent")
    assert (status, said) == (1, "accepted: nothing\n")
    assert errors.endswith(
        "to settle a conflict, edit the file as it should be (`exeat changes cat 1-2 'a b.txt'` prints the task's), "
        "then `exeat changes discard 1-2 'a b.txt'`\n"
    )
    assert changes("cat", "1-2", "a b.txt")[1] == "task\n"
    assert changes("discard", "1-2", "a b.txt")[0] == 0
    assert "to settle" not in changes("accept", "agent")[2]  # what is protected alone is left, and no conflict


def objects_of_a_commit(place):
    """Two loose objects, and a pack with its index: content by path, as git makes them."""
    environment = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], "GIT_DIR": str(place)}
    pack = "git cat-file --batch-all-objects --batch-check='%(objectname)'"
    script = f"git init -q --bare; for x in a b; do echo $x | git hash-object -w --stdin; done; {pack}"
    script += f" | git pack-objects -q {place}/objects/pack/pack"
    subprocess.run(["sh", "-ec", script], env=environment, check=True, capture_output=True)
    found = {path.relative_to(place): path.read_bytes() for path in (place / "objects").rglob("*") if path.is_file()}
    return {str(path): content for path, content in found.items() if path.suffix != ".rev"}


def test_git_objects_are_summarised_in_the_list(lab, changes):
    lab.write(".git/HEAD", "ref: refs/heads/main\n")
    lab.write(f".git/objects/ff/{'2' * 38}", b"\0")
    lab.write(".git/modules/lib/HEAD", "ref: refs/heads/main\n")
    lab.begin(protected=["**/evil"])
    plain = {
        f".git/modules/lib/{path}" if "/pack/" in path else f".git/{path}": content
        for path, content in objects_of_a_commit(lab.work.parent / "bare").items()
    }
    for path, content in plain.items():
        lab.task_writes(path, content)
    loose = min(path for path in plain if "/pack/" not in path)
    sizes = [
        sum(len(content) for path, content in plain.items() if ("lib" in path) is inner) for inner in (True, False)
    ]
    shown = [f"{loose}.txt", ".git/objects/info/alternates", ".git/objects/0a/evil", f"src/objects/0a/{'1' * 38}"]
    for path in ("a.txt", ".git/refs/heads/main", *shown):
        lab.task_writes(path, "y\n")
    lab.task_writes(f".git/objects/0b/{'3' * 38}", "#!/bin/sh\n", 0o755)
    lab.task_writes(f".git/objects/ff/{'2' * 38}", "changed\n")
    (lab.upper / ".git/objects/0c").mkdir()
    (lab.upper / f".git/objects/0c/{'4' * 38}").symlink_to("0")

    _, whole, errors = changes("agent")
    assert errors == ""
    heads = {line.split(" b/")[1] for line in whole.splitlines() if line.startswith("diff ")}
    assert heads >= {"a.txt", ".git/refs/heads/main", *shown}
    assert heads >= {f".git/objects/{name}" for name in ("0b/" + "3" * 38, "ff/" + "2" * 38, "0c/" + "4" * 38)}
    assert not heads & set(plain)
    assert [line for line in whole.splitlines() if " of git, " in line] == [
        f"# 2 objects of git, {sizes[0]:,} bytes, in .git/modules/lib/objects: name that, and each is shown",
        f"# 2 objects of git, {sizes[1]:,} bytes, in .git/objects: name that, and each is shown",
    ]
    stat = changes("agent", "--stat")[1].splitlines()
    assert f"added    .git/objects  (2 objects of git, {sizes[1]:,} bytes: name that, and each is shown)" in stat
    assert not any(line.split()[1] in plain for line in stat)
    assert f"diff --exeat a/{loose} b/{loose}\n" in changes("agent", ".git/objects")[1]
    told = json.loads(changes("agent", "--format", "json", "--stat")[1])["changes"]
    assert {each["path"] for each in told} >= {*heads, *plain}
    assert stat[-1].startswith(f"{len(told) - 1} added, 1 changed")


MISUSE = [
    (["nobody"], "no task `nobody` has changes"),
    (["accept"], "which task?"),
    (["accept", "agent", "nothing/here"], "`nothing/here` is not among the changes"),
    (["accept", "agent", "--protected", "dir"], "`dir` is not among the changes"),
    (["agent", "--protected", "new"], "--protected goes with `exeat changes accept`"),
    (["accept", "agent", "../outside"], "`../outside` is not a path in the workspace"),
    (["discard", "agent", "/etc"], "`/etc` is not a path in the workspace"),
    (["cat", "agent"], "name one path"),
    (["cat", "agent", "dir"], "the task left no file at `dir`"),
]


@pytest.mark.parametrize(("words", "said"), MISUSE, ids=[" ".join(row[0]).replace("/", "|") for row in MISUSE])
def test_invalid_arguments_are_refused(lab, changes, words, said):
    lab.write("dir/old", "x")
    lab.begin()
    lab.task_writes("dir/new", "x")
    status, out, errors = changes(*words)
    assert (status, out) == (2, "")
    assert said in errors
    assert set(lab.files()) == {"dir", "dir/old"}


def test_changes_in_use_are_left_alone(lab, changes):
    lab.begin()
    lab.task_writes("new", "x")
    lab.changes()
    lab.kept.lock()
    status, _, errors = changes("accept", "agent")
    assert status == 1
    assert "still runs, or another process uses its changes" in errors
    lab.kept.unlock()
    assert lab.files() == {}


def test_replaced_workspace_directory_gets_no_changes(lab, changes):
    lab.begin()
    lab.task_writes("new", "x")
    lab.changes()
    lab.work.rename(lab.work.parent / "moved")
    outside = lab.work.parent / "outside"
    outside.mkdir()
    lab.work.symlink_to(outside)
    assert changes("accept", "agent")[0] == 125
    assert "new file mode" in changes("agent")[1]  # what the task did can still be seen
    lab.work.unlink()
    lab.work.mkdir()
    status, _, errors = changes("accept", "agent")
    assert status == 125
    assert "another directory than the one that the task worked in" in errors
    assert list(lab.work.iterdir()) == list(outside.iterdir()) == []


def test_without_a_journal_nothing_is_accepted(lab, changes):
    lab.begin()
    lab.task_writes("new", "x")
    (lab.work.parent / "journal").write_text("in the way")
    for verb in ("accept", "discard"):
        status, _, errors = changes(verb, "agent")
        assert status == 125
        assert "cannot write" in errors
    assert lab.files() == {}
    assert set(lab.changes()) == {"new"}


def test_incomplete_stores_of_killed_processes_are_removed(lab, changes):
    """At whatever point it was, and nothing that somebody is at still."""
    lab.write("a", "one")
    lab.begin()
    lab.task_writes("a", "two")
    for number, there in enumerate((["lock", "layers/upper/x", "meta.unfinished"], ["lock"], [])):
        for name in there:
            path = directory() / f"left-{number}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (directory() / f"left-{number}").mkdir(exist_ok=True)
    made = StoredChanges.create(replace(lab.kept.meta, id="3-4"))
    (made.place / "meta.json").unlink()
    assert "1 changed" in changes()[1]
    assert {path.name for path in directory().iterdir()} == {"1-2", "3-4"}
    made.unlock()
    changes()
    assert [path.name for path in directory().iterdir()] == ["1-2"]


def test_sweep_between_creation_and_lock_loses_no_store(lab, monkeypatch):
    lab.begin()
    lock, swept = StoredChanges.lock, []

    def quicker(kept):
        if not swept:
            swept.append(True)
            assert [each.meta.id for each in find()] == ["1-2"]
        lock(kept)

    monkeypatch.setattr(StoredChanges, "lock", quicker)
    made = StoredChanges.create(replace(lab.kept.meta, id="3-4"))
    assert swept
    assert made.upper.is_dir()
    made.unlock()
