"""A task with placeholders in a real sandbox, as root and as a user: values from each source, and none to be found.

The origin got the value; the task, the journal, what is printed and what other processes can read have none of it.
"""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.invariants.lab_runner import worker_of
from tests.lab import Lab, Name
from tests.support import harness

NAMES = {"good.example": Name.at("93.184.216.34"), "other.example": Name.at("93.184.216.35")}
# of no known shape, so that placeholders are longer and an echo of a value is masked with stars
MARK = f"geheim-{os.getpid():07}"  # so that nothing else on the machine has it, nor another run of this
PATTERN = MARK.replace("m", "[m]")  # which doesn't find itself
VALUES = {kind: f"{kind}-{MARK}-abcdefghijk" for kind in ("env", "file", "command", "systemd")}

RULES = """
version: 1
name: web
secrets:
  - {{id: env, from: {{env: REAL_KEY}}, as: ENV_KEY, hosts: good.example, in: {{header: authorization}}}}
  - {{id: file, from: {{file: {home}/file.key}}, as: FILE_KEY, hosts: good.example, in: {{header: x-api-key}}}}
  - {{id: command, from: {{command: [/bin/cat, {home}/command.key]}}, as: COMMAND_KEY, hosts: good.example, in: basic}}
  - {{id: systemd, from: {{systemd: unit.key}}, as: UNIT_KEY, hosts: good.example, in: {{query: key}}}}
rules:
  - {{id: ours, to: good.example, credential: env, action: allow}}
  - {{id: read, to: good.example, http: {{paths: [/echo]}}, action: allow}}
  - {{id: other, to: other.example, action: allow}}
"""

TASK = """
curl -sS -m 20 -H "Authorization: Bearer $ENV_KEY" https://good.example/echo
curl -sS -m 20 -H "X-Api-Key: $FILE_KEY" https://good.example/echo
curl -sS -m 20 -u "me:$COMMAND_KEY" https://good.example/echo
curl -sS -m 20 "https://good.example/echo?key=$UNIT_KEY"
echo
curl -sS -m 20 -o /dev/null -w '%{http_code} ' -H "Authorization: Bearer $ENV_KEY" https://other.example/echo
curl -sS -m 20 -o /dev/null -w '%{http_code} ' -H "Authorization: Bearer sk-theirs" https://good.example/credential
curl -sS -m 20 -o /dev/null -w '%{http_code}\n' -H "Authorization: Bearer $ENV_KEY" http://good.example/echo
env | grep -c MARK
cat /proc/*/environ /proc/*/cmdline /proc/*/maps 2>/dev/null | grep -ac MARK
grep -rs MARK /etc /run /tmp "$HOME" . | wc -l
for pid in /proc/[0-9]*; do dd if=$pid/mem bs=1 count=1 of=/dev/null 2>/dev/null && echo "$pid can be read"; done
echo "$ENV_KEY"
"""


@pytest.fixture(scope="module")
def lab():
    harness.needs_root()
    with Lab(NAMES) as made:
        yield made


@pytest.fixture(params=["root", "user"])
def who(request):
    return None if request.param == "root" else Lab.ORDINARY


def prepare(lab, who):
    """Write a rule file and the files with values; returns the file and the environment it needs."""
    home = lab.home(who)
    passed = home / "credentials"
    passed.mkdir(exist_ok=True)
    files = {home / "file.key": "file", home / "command.key": "command", passed / "unit.key": "systemd"}
    for path, kind in files.items():
        path.write_text(VALUES[kind] + "\n")
        path.chmod(0o600)
    rules = home / "rules.yaml"
    rules.write_text(RULES.format(home=home))
    for each in (rules, passed, *files):
        os.chown(each, who or 0, who or 0)
    shutil.rmtree(home / ".local", ignore_errors=True)
    return rules, ["env", f"REAL_KEY={VALUES['env']}", f"CREDENTIALS_DIRECTORY={passed}"]


@harness.in_the_lab_as_a_user
def test_values_reach_only_their_server(lab, who):
    rules, variables = prepare(lab, who)
    lab.origin.forget()
    argv = [
        *variables,
        "exeat",
        "run",
        "--quiet",
        "--rules",
        rules,
        "--",
        "bash",
        "-c",
        TASK.replace("MARK", f"'{PATTERN}'"),
    ]
    done = lab.run(argv, user=who, cwd=lab.workspace(who))
    codes, environment, processes, files, placeholder = done.stdout.splitlines()[-5:]
    assert codes == "403 403 403", done
    assert (environment, processes, files) == ("0", "0", "0"), done
    assert len(placeholder) == 40
    echoed = done.stdout.partition("403 ")[0]
    for kind in ("env", "file"):  # had the server got a placeholder, it would be there
        assert f'{"Bearer " if kind == "env" else ""}{"*" * len(VALUES[kind])}"' in echoed, kind
    assert '"Basic bWU6****' in echoed
    assert placeholder not in echoed
    assert [each["target"] for each in lab.origin.requests()][-1] == f"/echo?key={VALUES['systemd']}"
    told = harness.journal(lab.home(who))
    for text in (done.stdout, done.stderr, repr(told)):
        assert MARK not in text
    misused, mismatched = [e for e in told if e["kind"] == "request.decided" and e["outcome"] == "blocked"]
    assert (misused["reason"], mismatched["reason"]) == ("secret_misuse", "credential_mismatch")
    elsewhere, plain = [e for e in told if e["kind"] == "tampering.detected"]
    assert (elsewhere["cause"], elsewhere["destination"]["name"]) == (misused["id"], "other.example")
    assert (plain["destination"]["name"], plain["destination"]["port"]) == ("good.example", 80)


def test_no_process_shows_a_value(lab, who):
    """But for the variable that it comes from, in the process that was given it; the worker can't be looked into."""
    rules, variables = prepare(lab, who)
    argv = [*variables, "exeat", "run", "--quiet", "--rules", rules, "--", "sh", "-c", "echo ready; read end"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with lab.start(argv, user=who, cwd=lab.workspace(who), **streams) as process:
        assert process.stdout.readline() == "ready\n"
        shown = b""
        for each in Path("/proc").glob("[0-9]*/*"):
            if each.name in {"cmdline", "environ"}:
                with contextlib.suppress(OSError):
                    shown += each.read_bytes()
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        worker = worker_of(process) if who is None else None
        if worker is not None:
            limits += Path(f"/proc/{worker}/limits").read_text()
            owners = {os.stat(f"/proc/{worker}/{name}").st_uid for name in ("mem", "environ", "maps")}
            assert owners == {0}, "what can't be dumped is root's (proc(5), PR_SET_DUMPABLE)"
        process.communicate("end\n")
    for kind in ("file", "command", "systemd"):
        assert VALUES[kind].encode() not in shown, kind
    cores = [line.split()[4] for line in limits.splitlines() if line.startswith("Max core file size")]
    assert cores == ["1"] * (2 if worker else 1)


def wait_for_events(lab, who, kind, count=1):
    deadline = time.monotonic() + 30
    while len(found := [e for e in harness.journal(lab.home(who)) if e["kind"] == kind]) < count:
        assert time.monotonic() < deadline, f"no {kind}"
        time.sleep(0.05)
    return found


@harness.in_the_lab_as_a_user
def test_secrets_cannot_change_during_a_run(lab, who):
    rules, variables = prepare(lab, who)
    argv = [*variables, "exeat", "run", "--quiet", "--rules", rules, "--", "sh", "-c", "echo ready; read end"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with lab.start(argv, user=who, cwd=lab.workspace(who), **streams) as process:
        assert process.stdout.readline() == "ready\n"
        wait_for_events(lab, who, "rules.loaded")
        rules.write_text(
            rules.read_text().replace("as: ENV_KEY, hosts: good.example", "as: ENV_KEY, hosts: other.example")
        )
        [rejected] = wait_for_events(lab, who, "rules.rejected")
        process.communicate("end\n")
    assert rejected["problems"] == [
        "`secrets` can't change while a task runs, which has their placeholders; start the task again"
    ]


@harness.in_the_lab_as_a_user
def test_placeholders_survive_a_reload(lab, who):
    rules, variables = prepare(lab, who)
    text = rules.read_text()
    rules.write_text(text.replace("paths: [/echo]", "paths: [/nothing]"))
    script = 'echo ready; read go; curl -sS -m 20 -H "X-Api-Key: $FILE_KEY" https://good.example/echo'
    argv = [*variables, "exeat", "run", "--quiet", "--rules", rules, "--", "sh", "-c", script]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with lab.start(argv, user=who, cwd=lab.workspace(who), **streams) as process:
        assert process.stdout.readline() == "ready\n"
        rules.write_text(text)
        wait_for_events(lab, who, "rules.loaded", 2)
        said, _ = process.communicate("go\n")
    assert f'"{"*" * len(VALUES["file"])}"' in said


BROKEN = {
    "no variable": ("REAL_KEY", "NOTHING", 125, "which is not set"),
    "a file in the workspace": ("{home}/file.key", "{work}/file.key", 2, "which the task is shown"),
    "the sandbox's own variable": ("as: ENV_KEY", "as: SSL_CERT_FILE", 2, "that variable is the sandbox's own"),
}


@pytest.mark.parametrize(("part", "other", "status", "message"), BROKEN.values(), ids=BROKEN)
def test_missing_secret_refuses_the_start(lab, who, part, other, status, message):  # noqa: PLR0917 - a row
    rules, variables = prepare(lab, who)
    places = {"home": lab.home(who), "work": lab.workspace(who)}
    rules.write_text(rules.read_text().replace(part.format(**places), other.format(**places)))
    argv = [*variables, "exeat", "run", "--quiet", "--rules", rules, "--", "touch", "ran"]
    done = lab.run(argv, user=who, cwd=lab.workspace(who))
    assert done.returncode == status, done
    assert message in done.stderr
    assert MARK not in done.stderr
    assert not (lab.workspace(who) / "ran").exists()
