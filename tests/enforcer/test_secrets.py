"""A task with placeholders in a real sandbox, as root and as a user: values from each source, and none to be found.

The origin got the value; the task, the journal, what is printed and what other processes can read have none of it.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from enforcer import secrets
from enforcer.environment import build
from enforcer.errors import HostError, UsageError
from rules.own_variables import TAKEN, is_own_variable
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from tests import harness
from tests.invariants.running import worker_of
from tests.lab import Lab, Name

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


@pytest.fixture(params=[None, Lab.ORDINARY], ids=["root", "user"])
def who(request):
    return request.param


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


def test_values_reach_their_server_and_nobody_else(lab, who):
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
    elsewhere, plain = [e for e in told if e["kind"] == "tamper"]
    assert (elsewhere["cause"], elsewhere["destination"]["name"]) == (misused["id"], "other.example")
    assert (plain["destination"]["name"], plain["destination"]["port"]) == ("good.example", 80)


def test_no_process_shows_a_value_while_a_task_runs(lab, who):
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


def ask(source, *words, host="good.example"):
    return Secret("key", Source(source, words), "KEY", ((host, 443),), (Slot(SlotKind.BASIC),))


class Rules:
    """As much of a policy as is asked."""

    def __init__(self, *given):
        self.secrets = given


GOOD = "sk-0123456789"
# how a file is, and what is said of it
FILES = {
    "open to others": ({"mode": 0o644}, "is open to others (mode 644)"),
    "open to a group": ({"mode": 0o640}, "is open to others (mode 640)"),
    "a stranger's": ({"owner": 4711}, "belongs to uid 4711"),
    "with another name": ({"link": True}, "has other names"),
    "empty": ({"text": ""}, "has to be one line"),
    "two lines": ({"text": "sk-0123456789\nsk-9876543210\n"}, "has to be one line"),
    "with a space": ({"text": "sk-01234 56789"}, "has to be one line"),
    "a control character": ({"text": "sk-0123456789\r\n\r\nX: y"}, "has to be one line"),
    "short": ({"text": "sk-0"}, "has to be 8 to 4096 characters"),
    "long": ({"text": "a" * 5000}, "has to be 8 to 4096 characters"),
}


@pytest.mark.parametrize(("state", "message"), FILES.values(), ids=FILES)
def test_a_file_that_cant_be_used_is_told_without_what_is_in_it(tmp_path, state, message):
    if "owner" in state:
        harness.needs_root()
    path = tmp_path / "key"
    text = state.get("text", GOOD)
    path.write_text(text)
    path.chmod(state.get("mode", 0o600))
    if "owner" in state:
        os.chown(path, state["owner"], 0)
    if "link" in state:
        os.link(path, tmp_path / "other")
    with pytest.raises(HostError) as said:
        secrets.broker(Rules(ask(SourceKind.FILE, str(path))), {})
    assert message in str(said.value)
    assert not any(len(word) > 3 and word in str(said.value) for word in text.split())


@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "nothing"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "key"
    {
        "fifo": lambda: os.mkfifo(path, 0o600),
        "directory": lambda: path.mkdir(0o700),
        "symlink": lambda: path.symlink_to("/dev/stdin"),
        "nothing": lambda: None,
    }[kind]()
    with pytest.raises(HostError, match=r"is not a plain file|can't be read"):
        secrets.broker(Rules(ask(SourceKind.FILE, str(path))), {})


COMMANDS = {
    "fails": ([sys.executable, "-c", "import sys; print('sk-0123456789'); sys.exit(3)"], "failed with status 3"),
    "says nothing": (["/bin/true"], "has to be one line"),
    "isn't there": (["/nowhere/pass"], "can't be run: no such file"),
    "says why": (["/bin/sh", "-c", "echo sk-0123456789 >&2; exit 1"], "failed with status 1"),
}


@pytest.mark.parametrize(("words", "message"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_gives_nothing_is_told(words, message, capfd):
    with pytest.raises(HostError) as said:
        secrets.broker(Rules(ask(SourceKind.COMMAND, *words)), {})
    assert message in str(said.value)
    assert "0123456789" not in str(said.value) + "".join(capfd.readouterr())


KEYRING = ask(SourceKind.KEYRING, "account", "me", "service", "exeat")
# what libsecret's tool does, and what comes of it
TOOLS = {
    "has it": ('[ "$*" = "lookup account me service exeat" ] && printf sk-0123456789', None),
    "doesn't": ("exit 1", "the keyring's item with `account=me`, `service=exeat` for `key` failed with status 1"),
    "says what is wrong": ("echo sk-0123456789 >&2; exit 1", "it isn't there"),
}


@pytest.mark.parametrize(("script", "message"), TOOLS.values(), ids=TOOLS)
def test_a_value_comes_from_the_keyring(tmp_path, monkeypatch, capfd, script, message):
    """With the real service: `make clients`."""
    tool = tmp_path / "secret-tool"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(secrets, "_KEYRING_TOOL", ("/nonexistent/secret-tool", str(tool)))
    if message is None:
        (held,) = secrets.broker(Rules(KEYRING), {})._all
        assert held.value == b"sk-0123456789"
        return
    with pytest.raises(HostError, match=message) as said:
        secrets.broker(Rules(KEYRING), {})
    assert "0123456789" not in str(said.value) + "".join(capfd.readouterr())


def test_a_machine_without_a_keyrings_tool_is_told_what_gets_one(monkeypatch):
    monkeypatch.setattr(secrets, "_KEYRING_TOOL", ())
    with pytest.raises(HostError, match="apt-get install libsecret-tools"):
        secrets.broker(Rules(KEYRING), {})
    assert secrets.hidden(Rules(KEYRING), {}, ["/tmp"]) == ()


def test_no_shell_reads_a_command(tmp_path):
    with pytest.raises(HostError, match=r"one line of visible ASCII characters, without spaces"):
        secrets.broker(Rules(ask(SourceKind.COMMAND, "/bin/echo", f"$(touch {tmp_path}/x)", "sk-0123456789")), {})
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(secrets, "_PATIENCE", 0.2)
    with pytest.raises(HostError, match="has said nothing within"):
        secrets.broker(Rules(ask(SourceKind.COMMAND, "/bin/sleep", "1000")), {})


@pytest.mark.parametrize(
    ("source", "word", "environment"),
    [
        (SourceKind.ENV, "KEY", {}),
        (SourceKind.SYSTEMD, "key", {}),
        (SourceKind.SYSTEMD, "key", {"CREDENTIALS_DIRECTORY": "relative"}),
    ],
)
def test_what_is_not_there_is_told(source, word, environment):
    with pytest.raises(HostError, match=r"which is not set|has passed on no credentials"):
        secrets.broker(Rules(ask(source, word)), environment)


def test_what_a_task_may_write_or_see_is_no_source(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    for source in (
        ask(SourceKind.FILE, str(tmp_path / "key")),
        ask(SourceKind.FILE, f"{tmp_path}/link/key"),
        ask(SourceKind.COMMAND, str(tmp_path / "pass")),
        ask(SourceKind.COMMAND, "/usr/bin/python3", str(tmp_path / "pass.py")),
        ask(SourceKind.COMMAND, "/usr/bin/python3", str(tmp_path / "pass.py").removeprefix("/")),  # it is run in `/`
        ask(SourceKind.COMMAND, "/usr/bin/python3", f"etc/..{tmp_path}/pass.py"),
        ask(SourceKind.SYSTEMD, "key"),
    ):
        with pytest.raises(UsageError, match="which the task is shown"):
            secrets.hidden(Rules(source), {"CREDENTIALS_DIRECTORY": str(tmp_path)}, [str(tmp_path)])
    assert secrets.hidden(Rules(ask(SourceKind.FILE, "/etc/key")), {}, [str(tmp_path)]) == ("/etc/key",)


SIGNING = Secret("key", Source(SourceKind.ENV, ("REAL",)), "AWS", (("good.example", 443),), (Slot(SlotKind.AWS),))
IDENT, SIGNER = "AKIAREALREALREAL0001", "real/Secret+Key0123456789"
REAL_KEYS = {"REAL_ACCESS_KEY_ID": IDENT, "REAL_SECRET_ACCESS_KEY": SIGNER}
TOKEN = {"REAL_SESSION_TOKEN": "token-0123456789"}


@pytest.mark.parametrize(
    ("source", "environment", "parts"),
    [
        (SIGNING.source, REAL_KEYS, 2),
        (SIGNING.source, {**REAL_KEYS, "REAL_SESSION_TOKEN": ""}, 2),
        (SIGNING.source, {**REAL_KEYS, **TOKEN}, 3),
        (Source(SourceKind.COMMAND, ("/bin/echo", f"{IDENT}:{SIGNER}")), {}, 2),
        (Source(SourceKind.COMMAND, ("/bin/echo", f'{{"AccessKeyId":"{IDENT}","SecretAccessKey":"{SIGNER}"}}')), {}, 2),
    ],
)
def test_keys_to_sign_with_come_from_every_source(source, environment, parts):
    made = secrets.broker(Rules(SIGNING._replace(source=source)), environment).placeholders
    assert tuple(made) == SIGNING.variables[:parts]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "from the variable `REAL_ACCESS_KEY_ID`, which is not set"),
        ({"REAL_ACCESS_KEY_ID": IDENT, **TOKEN}, "`REAL_SECRET_ACCESS_KEY`, which is not set"),
        ({**REAL_KEYS, "REAL_SECRET_ACCESS_KEY": "", **TOKEN}, "has to be one line"),
    ],
)
def test_keys_that_arent_all_there_are_told(environment, message):
    with pytest.raises(HostError, match=message):
        secrets.broker(Rules(SIGNING), environment)


@pytest.mark.parametrize("named", ["REAL_SECRET_ACCESS_KEY", "REAL_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"])
def test_no_variable_gives_a_task_keys(named):
    with pytest.raises(UsageError, match=r"value of the secret `key`|placeholder of `key`"):
        secrets.check_environment(Rules(SIGNING), [named])


@pytest.mark.parametrize("named", ["REAL", "KEY"])
def test_no_variable_gives_a_task_the_value_or_takes_the_placeholders_place(named):
    with pytest.raises(UsageError, match=r"value of the secret `key`|placeholder of `key`"):
        secrets.check_environment(Rules(ask(SourceKind.ENV, "REAL")), [named])


def test_what_holds_a_value_shows_and_gives_nothing():
    import pickle

    broker = secrets.broker(Rules(ask(SourceKind.ENV, "REAL")), {"REAL": GOOD})
    (held,) = broker._all
    assert GOOD not in repr(broker) + repr(held) + str(held)
    for each in (broker, held):
        with pytest.raises(TypeError):
            pickle.dumps(each)


SHAPES = [
    ("sk-ant-api03-" + "a" * 95, "", "sk-ant-api03-", 108),
    ("sk-" + "a" * 48, "", "sk-", 51),
    ("ghp_" + "a" * 36, "", "ghp_", 40),
    ("sk-short", "", "sk-", 35),
    ("acme_0123456789", "acme_", "acme_", 37),
    ("correct-horse-battery", "", "", 40),
]


@pytest.mark.parametrize(("value", "prefix", "begins", "size"), SHAPES)
def test_a_placeholder_has_the_shape_and_nothing_else_of_the_value(value, prefix, begins, size):
    from proxy.broker import make_placeholder

    made = {make_placeholder(value, prefix) for _ in range(50)}
    assert len(made) == 50
    assert {len(each) for each in made} == {size}
    assert all(each.startswith(begins) and each[len(begins) :].isalnum() for each in made)


def until(lab, who, kind, count=1):
    deadline = time.monotonic() + 30
    while len(found := [e for e in harness.journal(lab.home(who)) if e["kind"] == kind]) < count:
        assert time.monotonic() < deadline, f"no {kind}"
        time.sleep(0.05)
    return found


def test_secrets_cant_change_while_a_task_runs(lab, who):
    rules, variables = prepare(lab, who)
    argv = [*variables, "exeat", "run", "--quiet", "--rules", rules, "--", "sh", "-c", "echo ready; read end"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with lab.start(argv, user=who, cwd=lab.workspace(who), **streams) as process:
        assert process.stdout.readline() == "ready\n"
        until(lab, who, "rules.loaded")
        rules.write_text(
            rules.read_text().replace("as: ENV_KEY, hosts: good.example", "as: ENV_KEY, hosts: other.example")
        )
        [rejected] = until(lab, who, "rules.rejected")
        process.communicate("end\n")
    assert rejected["problems"] == [
        "`secrets` can't change while a task runs, which has their placeholders: start it anew"
    ]


def test_placeholders_outlive_a_reload(lab, who):
    rules, variables = prepare(lab, who)
    text = rules.read_text()
    rules.write_text(text.replace("paths: [/echo]", "paths: [/nothing]"))
    script = 'echo ready; read go; curl -sS -m 20 -H "X-Api-Key: $FILE_KEY" https://good.example/echo'
    argv = [*variables, "exeat", "run", "--quiet", "--rules", rules, "--", "sh", "-c", script]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with lab.start(argv, user=who, cwd=lab.workspace(who), **streams) as process:
        assert process.stdout.readline() == "ready\n"
        rules.write_text(text)
        until(lab, who, "rules.loaded", 2)
        said, _ = process.communicate("go\n")
    assert f'"{"*" * len(VALUES["file"])}"' in said


BROKEN = {
    "no variable": ("REAL_KEY", "NOTHING", 125, "which is not set"),
    "a file in the workspace": ("{home}/file.key", "{work}/file.key", 2, "which the task is shown"),
    "the sandbox's own variable": ("as: ENV_KEY", "as: SSL_CERT_FILE", 2, "that variable is the sandbox's own"),
}


@pytest.mark.parametrize(("part", "other", "status", "message"), BROKEN.values(), ids=BROKEN)
def test_nothing_runs_without_its_secrets(lab, who, part, other, status, message):  # noqa: PLR0917 - a row
    rules, variables = prepare(lab, who)
    places = {"home": lab.home(who), "work": lab.workspace(who)}
    rules.write_text(rules.read_text().replace(part.format(**places), other.format(**places)))
    argv = [*variables, "exeat", "run", "--quiet", "--rules", rules, "--", "touch", "ran"]
    done = lab.run(argv, user=who, cwd=lab.workspace(who))
    assert done.returncode == status, done
    assert message in done.stderr
    assert MARK not in done.stderr
    assert not (lab.workspace(who) / "ran").exists()


def test_each_variable_of_a_sandbox_is_known_to_be_its_own():
    """So that no rule file passes a check and is refused when it is run."""
    caller = dict.fromkeys([*TAKEN, "LC_ALL", "LC_TIME", "API_KEY"], "x")
    built = build(caller, SimpleNamespace(user="x", home="/home/x"), "/etc/bundle", ["API_KEY"])
    assert {name for name in built if not is_own_variable(name)} == {"API_KEY"}
    assert TAKEN.issubset(built)
