"""`exeat run --dry-run`: it says what a start does, of the same values, and does none of it."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

PLANNED = Path(__file__).with_name("planned.py")
RULES = """version: 1
sandbox: {read: [~/data, ~/one], write: ~/more, hide: [~/data/in, "**/.env"], caches: {pip: ~/.cache/x/pip}, user: root, timeout: 5m,
  limits: {memory: 1GB, processes: 99}, environment: {set: {PASSWORD: hunter2}}}
commands: [{id: no-apply, run: "terraform apply*", action: deny}]
"""


def test_dry_run_prints_the_steps_and_makes_nothing(someone):
    for path in ("data/in/x", "one", "more/x", ".ssh/id"):
        someone.write(someone.home / path, "")
        os.chown((someone.home / path).parent, someone.home.stat().st_uid, -1)
    rules = someone.write(someone.home / "rules.yaml", RULES)
    words = ["run", "--no-service", "--quiet", "--rules", rules, "--hostname", "box-3", "--env", "A=b"]
    command = ["--", "make", "te\x1bst"]
    planned = someone.exeat(*words, "--dry-run", "--format", "json", *command)
    assert planned.returncode == 0, planned.stderr.decode()
    assert b"hunter2" not in planned.stdout
    assert not (someone.home / ".local/state/exeat/caches").exists()
    assert not (someone.home / ".local/state/exeat/journal").exists()
    lines = json.loads(planned.stdout)
    said = {
        where: [line["does"] for line in lines if line["where"] == where]
        for where in dict.fromkeys(line["where"] for line in lines)
    }
    assert list(said) == ["rules", "gate", "ids", "namespaces", "network", "limits", "files", "task"]
    done = someone.run([sys.executable, PLANNED, *words, *command])
    assert (done.returncode, done.stderr) == (125, b"exeat: told\n")
    made = json.loads(done.stdout)
    assert (said["files"], said["network"]) == (made["files"], made["network"])
    assert [re.sub("/proc/[0-9]+", "/proc/PID", line) for line in said["gate"]] == made["gate"]
    for line in (*made["wall"], f"a system call filter of {made['filter']} instructions"):
        assert any(each.endswith(line) for each in said["task"]), line
    assert f"set the variables {', '.join(made['variables'])}" in said["task"]
    assert made["hostname"] == "box-3"
    assert f"set the host name to {made['hostname']}" in said["task"]
    assert said["task"][-1] == "run make te\\x1bst", "what is said does nothing to a terminal"
    user, uid, gid = made["who"]
    assert (user, uid, gid) == ("root", 0, 0)
    assert said["ids"][-1].startswith(f"run the task as {user}, uid {uid}, gid {gid}: to the kernel ")
    [[inside, outside, count]] = made["inner"]
    assert f"map uids {inside}+{count} of the task to {outside}" in said["ids"]
    assert {"limit memory to 1 GiB", "limit processes to 99", "limit timeout to 300 s"} <= set(said["limits"])
    assert any(line.startswith("deny `terraform apply*`") for line in said["rules"])
    script = "cd /proc/self/ns; for kind in *; do echo $kind $(readlink $kind); done"
    inside = someone.exeat("run", "--no-service", "--quiet", "--rules", rules, "--", "sh", "-c", script).stdout.decode()
    names = {"mnt": "mount", "net": "network", "ipc": "IPC", "uts": "UTS"}
    apart = {kind for kind, link in map(str.split, inside.splitlines()) if link != os.readlink(f"/proc/self/ns/{kind}")}
    apart = {names.get(kind, kind) for kind in apart if not kind.endswith("_for_children")}
    assert {f"enter a new {name} namespace" for name in apart} == set(said["namespaces"])


@pytest.mark.parametrize("options", [["--read", "/no/such"], ["--workspace", "/"]], ids=["read", "workspace"])
def test_dry_run_refuses_what_a_start_refuses(someone, options):
    rules = someone.write(someone.home / "rules.yaml", "version: 1\n")
    words = ["run", "--no-service", "--rules", rules, *options]
    planned, done = (someone.exeat(*words, *more, "--", "true") for more in (["--dry-run"], []))
    assert planned.returncode == done.returncode == 2
    assert planned.stderr == done.stderr


def test_text_output_has_a_line_per_step(someone):
    rules = someone.write(someone.home / "rules.yaml", "version: 1\n")
    lines = (
        someone.exeat("run", "--no-service", "--rules", rules, "--dry-run", "--", "true").stdout.decode().splitlines()
    )
    assert lines[-1] == "task        run true"
    assert len(lines) > 100
