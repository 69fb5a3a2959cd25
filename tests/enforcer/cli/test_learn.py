"""`exeat learn` as a command."""

import errno
import io
import json
import os
import sys

import pytest

from enforcer.cli import main
from enforcer.run.dry_run import PlannedStep
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind
from proxy.telemetry.replay.learner import Learner, without_secrets
from rules.learning.writing import enforce_settings, write_rule_file
from rules.loading.load import read
from rules.settings import Settings
from rules.verdicts import Mode, Reason, Verdict
from tests.proxy.telemetry.replay.test_replay import AUDITED, connection, lookup, refused, request
from tests.rules.rule_texts import loaded
from tests.support.telemetry_lab import full_event


@pytest.fixture
def exeat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    day = tmp_path / "journal" / "2026-11-21"
    day.mkdir(parents=True)
    segment = day / "0001.jsonl"

    def run(*words, events=(), more=b""):
        segment.write_bytes(b"".join(map(encode, events)) + more)
        code = main(list(words))
        out = capsys.readouterr()
        return code, out.out, out.err.splitlines()

    return run


SOME = [request(AUDITED, "GET", "/a"), connection(AUDITED), lookup(AUDITED)]


def test_learned_file_is_written_and_valid(exeat, tmp_path):
    assert exeat("learn", "journal", "-o", "web.yaml", events=SOME) == (0, "", [])
    text = (tmp_path / "web.yaml").read_text()
    assert text.startswith("# Learned by `exeat learn` from journal: 2 attempts let out.\n# Read each rule")
    assert "\nname: web\n" in text
    assert exeat("test", "web.yaml", events=SOME)[0] == 0
    assert exeat("replay", "journal", "--rules", "web.yaml", events=SOME)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "web.yaml"]


IN_FORCE = """version: 1
name: audit
settings:
  mode: audit
  tls: splice
  dns: real
  dns_pool: 198.19.0.0/16
  on_block: reset
  on_journal_failure: continue
  idle_timeout: 90s
  upstream: "socks5h://[2001:db8::1]:1080"
  upstream_auth: "/etc/ex\U0001f511at/proxy.auth"
  upstream_except: ["**.corp.example", 203.0.113.0/24]
rules: []
"""


def test_learned_file_has_the_settings_except_audit_mode(exeat, tmp_path):
    (tmp_path / "audit.yaml").write_text(IN_FORCE)
    assert exeat("learn", "journal", "--rules", "audit.yaml", "-o", "web.yaml", events=SOME) == (0, "", [])
    was = read([tmp_path / "audit.yaml"]).policy.settings
    assert read([tmp_path / "web.yaml"]).policy.settings == was._replace(mode=Mode.ENFORCE)
    assert all(getattr(was, key) != usual for key, usual in Settings._field_defaults.items() if key != "upstream_ca")
    assert "copy" not in (tmp_path / "web.yaml").read_text()


def test_learned_file_keeps_trusted_certificates(exeat, tmp_path):
    settings = Settings(mode=Mode.AUDIT, upstream_ca='/etc/corp/"ca".pem')
    assert enforce_settings(settings) == {"upstream_ca": '/etc/corp/"ca".pem'}
    text = write_rule_file(Learner().result(), (), "learned", without_secrets, enforce_settings(settings))
    assert '\nsettings:\n  upstream_ca: "/etc/corp/\\"ca\\".pem"\nrules: []\n' in text


def test_learned_file_has_no_settings_if_only_the_mode_was_set(exeat, tmp_path):
    (tmp_path / "audit.yaml").write_text("version: 1\nsettings: {mode: audit}\nrules: []\n")
    _, out, _ = exeat("learn", "journal", "--rules", "audit.yaml", events=SOME)
    assert "settings" not in out


def test_unknown_settings_are_named_for_copying(exeat):
    force = full_event(Kind.RULES_LOADED)._replace(sources=("/home/x/audit.yaml", "/etc/corp/\nca.pem"))
    _, out, _ = exeat("learn", "journal", events=[force, *SOME])
    assert (
        "\n# that were, which were read from /home/x/audit.yaml, /etc/corp/\\x0aca.pem, but for `mode: audit`; or "
        in out
    )
    assert loaded(out).policy.settings == Settings()
    assert "# that were, but for `mode: audit`" in exeat("learn", "journal", events=SOME)[1]


def test_non_public_targets_are_listed_with_the_needed_key(exeat, tmp_path):
    """A company's servers with private addresses are never learned, so the output must explain why."""
    audit, not_public = {"mode": Mode.AUDIT}, refused(Reason.NON_PUBLIC_ADDRESS)
    lab = "pypi.corp.example"
    same = [request(not_public, "GET", "/simple/x/", lab, **audit), connection(not_public, lab, **audit)]
    more = [
        connection(not_public, "host.exeat.internal", **audit),
        connection(not_public, None, address="10.0.0.1", **audit),
        connection(not_public, "a..b\n", **audit),
        lookup(not_public, "only.example", **audit),
        connection(not_public, "enforced.example", mode=Mode.ENFORCE),
    ]
    code, out, err = exeat("learn", "journal", "-o", "web.yaml", events=[*SOME, *same, *more])
    text = (tmp_path / "web.yaml").read_text()
    output = "exeat: what audit mode refused for its address is not learned; the beginning of `web.yaml` says what lets it out"
    assert (code, out, err) == (0, "", [output])
    assert text.split("# Refused in audit mode, too, and so not learned:\n")[1].startswith(
        "#   pypi.corp.example: the address, or the one that the name resolves to, is not public; list the address in the rule's `resolves_to`; a service of this machine needs a rule `to: host.exeat.internal` with its `ports`\n"
        "#   host.exeat.internal: `host.exeat.internal` is this machine: it needs a rule `to: host.exeat.internal` with its "
        "`ports`\n#   10.0.0.1: the address, or the one that the name resolves to, is not public; list the address in the rule's `resolves_to`; a service of this machine needs a rule `to: host.exeat.internal` with its `ports`\nversion: 1\n"
    )
    assert exeat("test", "web.yaml")[0] == 0
    many = [connection(not_public, f"x{n}.example", **audit) for n in range(25)]
    assert "#   and 5 more\nversion" in exeat("learn", "journal", events=[*SOME, *many])[1]


MORE = "commands: [{id: a, run: git push, action: deny}]\nsandbox: {timeout: 1h}\n"


def test_secrets_in_force_are_named_and_not_written(exeat, tmp_path):
    secret = "{id: key, from: {env: K}, as: V, hosts: x.example, in: {header: authorization}}"
    (tmp_path / "audit.yaml").write_text(
        f"version: 1\nsettings: {{mode: audit}}\nsecrets: [{secret}]\nrules: []\n{MORE}"
    )
    _, out, _ = exeat("learn", "journal", "--rules", "audit.yaml", events=SOME)
    for key in ("commands", "sandbox"):
        assert f"\n# Their `{key}` is not in here, and belongs beside these.\n" in out
    assert "\n# The `secrets` of those rules are not in here, and belong beside these: `key`.\n" in out
    assert "\nsecrets:" not in out


def test_broken_rules_in_force_are_reported(exeat, tmp_path):
    (tmp_path / "audit.yaml").write_text("version: 1\nrulez: []\n")
    code, out, err = exeat("learn", "journal", "--rules", "audit.yaml", events=SOME)
    assert (code, out) == (2, "")
    assert err[0].startswith("audit.yaml:2:1: ")


def test_file_is_overwritten_only_with_force(exeat, tmp_path):
    (tmp_path / "web.yaml").write_text("mine")
    code, _, err = exeat("learn", "journal", "-o", "web.yaml", events=SOME)
    assert (code, err) == (2, ["exeat: `web.yaml` exists already: name another file, or overwrite it with `--force`"])
    assert (tmp_path / "web.yaml").read_text() == "mine"
    assert exeat("learn", "journal", "-o", "web.yaml", "--force", events=SOME)[0] == 0
    assert "x.example" in (tmp_path / "web.yaml").read_text()


def test_link_is_replaced_and_not_followed(exeat, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "web.yaml").symlink_to("mine")
    assert exeat("learn", "journal", "-o", "web.yaml", events=SOME)[0] == 2
    assert exeat("learn", "journal", "-o", "web.yaml", "--force", events=SOME)[0] == 0
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    assert exeat("learn", "journal", "-o", "gone.yaml", events=SOME)[0] == 2
    assert not (tmp_path / "nowhere").exists()


def test_rules_of_one_task_are_written_to_standard_output(exeat):
    events = [*SOME, request(AUDITED, "GET", "/b", "y.example", task="other")]
    code, out, err = exeat("learn", "journal", "--task", "other", events=events)
    assert (code, err) == (0, [])
    assert "y.example" in out
    assert "x.example" not in out


def test_unlearned_attempts_exit_1_and_are_listed(exeat):
    code, out, err = exeat("learn", "journal", events=[*SOME, lookup(AUDITED, "y.example")])
    assert (code, err) == (
        1,
        ["exeat: 1 attempt that was let out is not learned; the end of what was written says why"],
    )
    assert out.endswith(
        "# Not learned:\n#   once: lookups of y.example: the name was only looked up: nothing was sent to it\n"
    )


def test_json_output(exeat):
    code, out, _ = exeat("learn", "journal", "--format", "json", events=[*SOME, lookup(AUDITED, "y.example")])
    value = json.loads(out)
    assert code == 1
    (rule,) = value["rules"]
    assert (rule["to"], rule["ports"], rule["methods"], rule["paths"]) == ("x.example", "443/tls", ["GET"], ["/a"])
    assert (rule["seen"], rule["tasks"], rule["action"]) == (1, ["build"], Verdict.ALLOW)
    assert value["not_learned"][0]["attempts"] == 1


def test_damaged_lines_are_reported(exeat):
    code, out, err = exeat("learn", "journal", events=SOME, more=b"garbage\n")
    assert (code, err) == (1, ["exeat: a line is no event this version can read, and passed over"])
    assert "x.example" in out


class Gone(io.StringIO):
    """Output pipe whose reader has closed it."""

    buffer = property(lambda self: self)

    def write(self, _text):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize(
    "words",
    [
        ("learn", "journal"),
        ("report", "build", "--journal", "journal", "-o", "-"),
        ("top", "--once", "--journal", "journal"),
        ("run", "--rules", "t.yaml", "--dry-run", "--", "true"),
    ],
    ids=lambda words: words[0],
)
def test_closed_output_pipe_is_no_error(exeat, tmp_path, monkeypatch, words):
    (tmp_path / "t.yaml").write_text("version: 1\nname: t\nrules: []\n")
    (tmp_path / "work").mkdir()
    exeat("learn", "journal", events=SOME)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr("enforcer.run.dry_run.planned_steps", lambda _: [PlannedStep("gate", "nothing")])
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", output := io.StringIO())
    if words[0] == "run":
        monkeypatch.chdir(tmp_path / "work")
        words = (words[0], words[1], "../t.yaml", *words[3:])
    assert (main(list(words)), output.getvalue()) == (141, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gone",), "exeat: there is no journal in `gone`: name another with `--journal`"),
        (("journal", "--task", "x"), "exeat: there is no allowed attempt of a task `x` in the journal; `exeat log` shows all there are"),
        (("journal", "-o", "no/such/file.yaml"), "exeat: cannot write `no/such/file.yaml`: No such file or directory"),
    ],
)  # fmt: skip
def test_misuse_exits_2_with_a_message(exeat, words, says):
    code, out, err = exeat("learn", *words, events=SOME)
    assert (code, out) == (2, "")
    assert err[0].startswith(says)
