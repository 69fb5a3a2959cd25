"""Where values come from: files, commands, the keyring; and what is no source."""

import os
import sys
from types import SimpleNamespace

import pytest

from enforcer.run.environment import build_environment
from enforcer.system.errors import HostError, UsageError
from enforcer.worker import credentials
from rules.loading.secret_schema import TAKEN, is_own_variable
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from tests.lab.certificates import Authority
from tests.support import harness


def ask(source, *words, host="good.example"):
    return Secret("key", Source(source, words), "KEY", ((host, 443),), (Slot(SlotKind.BASIC),))


class Rules:
    """As much of a policy as is asked."""

    def __init__(self, *given):
        self.secrets, self.settings = given, SimpleNamespace(upstream_auth=None)


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
def test_unusable_secret_file_is_an_error_without_its_content(tmp_path, state, message):
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
        credentials.read_secrets(Rules(ask(SourceKind.FILE, str(path))), {})
    assert message in str(said.value)
    assert not any(len(word) > 3 and word in str(said.value) for word in text.split())


def test_client_certificate_is_read_from_a_file_and_gives_the_task_nothing(tmp_path):
    path = tmp_path / "cluster.pem"
    path.write_bytes(Authority.make().leaf("agent.example"))
    path.chmod(0o600)
    source = Source(SourceKind.FILE, (str(path),))
    known = Secret("cluster", source, "", (("good.example", 443),), (Slot(SlotKind.CLIENT_CERTIFICATE),))
    broker = credentials.read_secrets(Rules(known), {})
    assert broker.identity("good.example", 443).secret is known
    assert (broker.identity("good.example", 8443), broker.identity("other.example", 443)) == (None, None)
    assert (broker.placeholders, broker.values_to_find) == ({}, ())
    assert credentials.hidden_files(Rules(known), {}, ()) == (str(path),)
    path.write_text("no certificate")
    with pytest.raises(HostError, match="`cluster` can't be used: it has to be PEM"):
        credentials.read_secrets(Rules(known), {})


@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "nothing"])
def test_irregular_secret_file_is_not_awaited(tmp_path, kind):
    path = tmp_path / "key"
    {
        "fifo": lambda: os.mkfifo(path, 0o600),
        "directory": lambda: path.mkdir(0o700),
        "symlink": lambda: path.symlink_to("/dev/stdin"),
        "nothing": lambda: None,
    }[kind]()
    with pytest.raises(HostError, match=r"is not a plain file|can't be read"):
        credentials.read_secrets(Rules(ask(SourceKind.FILE, str(path))), {})


COMMANDS = {
    "fails": ([sys.executable, "-c", "import sys; print('sk-0123456789'); sys.exit(3)"], "failed with status 3"),
    "says nothing": (["/bin/true"], "has to be one line"),
    "isn't there": (["/nowhere/pass"], "can't be run: no such file"),
    "says why": (["/bin/sh", "-c", "echo sk-0123456789 >&2; exit 1"], "failed with status 1"),
}


@pytest.mark.parametrize(("words", "message"), COMMANDS.values(), ids=COMMANDS)
def test_command_without_output_is_an_error(words, message, capfd):
    with pytest.raises(HostError) as said:
        credentials.read_secrets(Rules(ask(SourceKind.COMMAND, *words)), {})
    assert message in str(said.value)
    assert "0123456789" not in str(said.value) + "".join(capfd.readouterr())


KEYRING = ask(SourceKind.KEYRING, "account", "me", "service", "exeat")
# what libsecret's tool does, and what comes of it
TOOLS = {
    "has it": ('[ "$*" = "lookup account me service exeat" ] && printf sk-0123456789', None),
    "doesn't": ("exit 1", "the keyring's item with `account=me`, `service=exeat` for `key` failed with status 1"),
    "says what is wrong": ("echo sk-0123456789 >&2; exit 1", "it doesn't exist"),
}


@pytest.mark.parametrize(("script", "message"), TOOLS.values(), ids=TOOLS)
def test_value_is_read_from_the_keyring(tmp_path, monkeypatch, capfd, script, message):
    """With the real service: `make clients`."""
    tool = tmp_path / "secret-tool"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(credentials, "_KEYRING_TOOL", ("/nonexistent/secret-tool", str(tool)))
    if message is None:
        (held,) = credentials.read_secrets(Rules(KEYRING), {})._secret_values
        assert held.value == b"sk-0123456789"
        return
    with pytest.raises(HostError, match=message) as said:
        credentials.read_secrets(Rules(KEYRING), {})
    assert "0123456789" not in str(said.value) + "".join(capfd.readouterr())


def test_missing_keyring_tool_has_a_remedy(monkeypatch):
    monkeypatch.setattr(credentials, "_KEYRING_TOOL", ())
    with pytest.raises(HostError, match="apt-get install libsecret-tools"):
        credentials.read_secrets(Rules(KEYRING), {})
    assert credentials.hidden_files(Rules(KEYRING), {}, ["/tmp"]) == ()


def test_command_runs_without_a_shell(tmp_path):
    with pytest.raises(HostError, match=r"one line of visible ASCII characters, without spaces"):
        credentials.read_secrets(
            Rules(ask(SourceKind.COMMAND, "/bin/echo", f"$(touch {tmp_path}/x)", "sk-0123456789")), {}
        )
    assert list(tmp_path.iterdir()) == []


def test_hanging_command_is_killed(monkeypatch):
    monkeypatch.setattr(credentials, "_COMMAND_TIMEOUT", 0.2)
    with pytest.raises(HostError, match="gave no output within"):
        credentials.read_secrets(Rules(ask(SourceKind.COMMAND, "/bin/sleep", "1000")), {})


@pytest.mark.parametrize(
    ("source", "word", "environment"),
    [
        (SourceKind.ENV, "KEY", {}),
        (SourceKind.SYSTEMD, "key", {}),
        (SourceKind.SYSTEMD, "key", {"CREDENTIALS_DIRECTORY": "relative"}),
    ],
)
def test_missing_source_is_an_error(source, word, environment):
    with pytest.raises(HostError, match=r"which is not set|has passed on no credentials"):
        credentials.read_secrets(Rules(ask(source, word)), environment)


def test_source_visible_to_the_task_is_refused(tmp_path):
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
            credentials.hidden_files(Rules(source), {"CREDENTIALS_DIRECTORY": str(tmp_path)}, [str(tmp_path)])
    assert credentials.hidden_files(Rules(ask(SourceKind.FILE, "/etc/key")), {}, [str(tmp_path)]) == ("/etc/key",)


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
def test_signing_keys_come_from_every_source(source, environment, parts):
    made = credentials.read_secrets(Rules(SIGNING._replace(source=source)), environment).placeholders
    assert tuple(made) == SIGNING.variables[:parts]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "from the variable `REAL_ACCESS_KEY_ID`, which is not set"),
        ({"REAL_ACCESS_KEY_ID": IDENT, **TOKEN}, "`REAL_SECRET_ACCESS_KEY`, which is not set"),
        ({**REAL_KEYS, "REAL_SECRET_ACCESS_KEY": "", **TOKEN}, "has to be one line"),
    ],
)
def test_incomplete_signing_keys_are_an_error(environment, message):
    with pytest.raises(HostError, match=message):
        credentials.read_secrets(Rules(SIGNING), environment)


@pytest.mark.parametrize("named", ["REAL_SECRET_ACCESS_KEY", "REAL_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"])
def test_no_variable_gives_a_task_signing_keys(named):
    with pytest.raises(UsageError, match=r"value of the secret `key`|placeholder of `key`"):
        credentials.check_environment(Rules(SIGNING), [named])


@pytest.mark.parametrize("named", ["REAL", "KEY"])
def test_no_variable_reveals_a_value_or_replaces_a_placeholder(named):
    with pytest.raises(UsageError, match=r"value of the secret `key`|placeholder of `key`"):
        credentials.check_environment(Rules(ask(SourceKind.ENV, "REAL")), [named])


def test_holder_of_a_value_has_no_repr_and_no_pickle():
    import pickle

    broker = credentials.read_secrets(Rules(ask(SourceKind.ENV, "REAL")), {"REAL": GOOD})
    (held,) = broker._secret_values
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
def test_placeholder_has_only_the_shape_of_the_value(value, prefix, begins, size):
    from proxy.secrets import make_placeholder

    made = {make_placeholder(value, prefix) for _ in range(50)}
    assert len(made) == 50
    assert {len(each) for each in made} == {size}
    assert all(each.startswith(begins) and each[len(begins) :].isalnum() for each in made)


def test_variables_of_the_sandbox_are_reserved():
    """So that no rule file passes a check and is refused when it is run."""
    caller = dict.fromkeys([*TAKEN, "LC_ALL", "LC_TIME", "API_KEY"], "x")
    built = build_environment(caller, SimpleNamespace(user="x", home="/home/x"), "/etc/bundle", ["API_KEY"])
    assert {name for name in built if not is_own_variable(name)} == {"API_KEY"}
    assert TAKEN.issubset(built)
