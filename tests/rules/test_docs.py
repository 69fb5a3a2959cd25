"""docs/reference/rules.md knows every key; a new one without a line there fails here."""

import re
from pathlib import Path

import pytest

from rules.attempt import RefChange
from rules.decision import GrantScope, LimitScope
from rules.loading.cases import TEST
from rules.loading.conditions import APPROVAL, FOR, GIT, HTTP, LIMITS
from rules.loading.load import failures
from rules.loading.rule_file import FILE, INCLUDE, SETTINGS
from rules.loading.rule_schema import EXCEPT, RULE
from rules.loading.sandbox_schema import COMMAND, ENVIRONMENT, RESOURCES, SANDBOX
from rules.loading.secret_schema import FROM, IN, SECRET
from rules.sandbox import SandboxUser, WorkspaceMode
from rules.settings import Settings
from rules.verdicts import (
    DnsMode,
    LayerKind,
    Log,
    Mode,
    OnBlock,
    OnJournalFailure,
    Scan,
    TlsMode,
    Trust,
    Verdict,
)
from tests.rules.rule_texts import loaded

DOCS = (Path(__file__).parents[2] / "docs/reference/rules.md").read_text()


def section(title):
    """What is under a heading, with those of four `#` below it."""
    return re.split(r"\n#{1,3} ", DOCS.split(f"# {title}\n")[1])[0]


@pytest.mark.parametrize(
    ("title", "table"),
    [
        ("The file", FILE),
        ("settings", SETTINGS),
        ("A rule", RULE),
        ("A test", TEST),
        ("secrets", SECRET),
        ("sandbox", SANDBOX),
        ("commands", COMMAND),
    ],
)
def test_every_key_has_one_row(title, table):
    assert set(re.findall(r"^\| `(\w+)` \|", section(title), re.MULTILINE)) == set(table.keys)


def test_nested_keys_are_documented():
    rule = section("A rule")
    for table in (HTTP, GIT, EXCEPT, FOR, LIMITS, APPROVAL):
        for key in table.keys:
            assert re.search(rf"[`{{ ]{key}[`:,}} ]", rule), key
    for key in (*FROM.keys, *IN.keys):
        assert f"{{{key}: " in section("secrets"), key
    for key in (*ENVIRONMENT.keys, *RESOURCES.keys):
        assert re.search(rf"[`{{ ]{key}:", section("sandbox")), key
    for key in INCLUDE.keys:
        assert re.search(rf"[`{{ ]{key}[`,:}} ]", section("Includes and presets")), key


def test_every_value_is_documented():
    settings, rule = section("settings"), section("A rule")
    for kind in (Mode, TlsMode, DnsMode, OnBlock, OnJournalFailure):
        for member in kind:
            assert f"`{member}`" in settings, member
    for kind in (Verdict, RefChange, LimitScope, GrantScope, Trust, Scan, Log):
        for member in kind:
            assert f"`{member}`" in rule, member
    for member in (*WorkspaceMode, *SandboxUser):
        assert f"`{member}`" in section("sandbox"), member
    for layer in LayerKind:
        assert f"`{layer}`" in section("The file")


def test_defaults_are_as_documented():
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)`", section("settings"), re.MULTILINE))
    defaults = Settings()
    assert rows == {
        "mode": defaults.mode,
        "tls": defaults.tls,
        "dns": defaults.dns,
        "dns_pool": str(defaults.dns_pool),
        "on_block": defaults.on_block,
        "on_journal_failure": defaults.on_journal_failure,
        "idle_timeout": f"{defaults.idle_timeout / 60:.0f}m",
    }


def test_documented_example_loads_and_passes_its_tests():
    from rules.loading.load import failures

    example = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert example
    files = loaded(example[1])
    assert files.tests
    assert failures(files) == []
    assert files.warnings == ()


def test_injection_policy_decides_as_documented():
    text = (Path(__file__).parents[2] / "docs/explanation/prompt-injection.md").read_text()
    (policy,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = loaded(policy)
    assert (len(found.tests), failures(found)) == (3, [])
