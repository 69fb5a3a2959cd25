"""`exeat presets`: what it shows, what it writes, and what it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer.cli import main
from enforcer.presets.locking import format_lock
from rules.loading.preset_locks import Origin, read_locks
from tests.enforcer.presets.registry_lab import PIP, put


def test_lock_is_printed_written_and_used(exeat, host, registry, tmp_path):
    put(host, "/etc/pip.conf", PIP)
    registry.page("/simple/pip/", {"files": [{"url": "https://files.example/x.whl"}]})
    code, out, err = exeat("lock")
    assert (code, err) == (0, "")
    for part in (
        "pip: new",
        "http://pypi.example:8000/simple",
        f"index-url in {host.root}/etc/pip.conf",
        "https://files.example",
        "answers about `pip`",
        "not configured on this machine, so not locked: npm,",
        f"locked in {exeat.path}",
    ):
        assert part in out
    assert oct(exeat.path.stat().st_mode & 0o777) == "0o644"
    assert [path.name for path in exeat.path.parent.iterdir()] == ["presets.lock"], "no draft is left"
    (tmp_path / "web.yaml").write_text("version: 1\ninclude: [{preset: pip}]\n")
    assert main(["check", str(tmp_path / "web.yaml")]) in {0, 1}
    from rules.loading.load import load

    assert load([tmp_path / "web.yaml"]).rule_ids == ("pip:files", "pip:index", "pip:metadata", "pip:upload")
    assert "pip: as before" in exeat("lock")[1]
    put(host, "/etc/pip.conf", PIP.replace("pypi", "other"))
    assert "pip: CHANGED" in exeat("lock", "pip")[1]


def test_lock_skips_unconfigured_clients(exeat, host, registry):
    """An installed client's built-in registry that nobody reaches is no failure; a configured one is."""
    put(host, "/etc/pip.conf", PIP)
    registry.page("/simple/pip/", {"files": [{"url": "https://files.example/x.whl"}]})
    put(host, "/usr/lib/ruby/3.1/rubygems/defaults.rb", "def self.default_sources\n  %w[https://gone.example/]\nend\n")
    registry.addresses["gone.example"] = None
    code, out, err = exeat("lock")
    assert (code, err) == (0, "")
    assert "rubygems" in out.partition("not configured on this machine, so not locked: ")[2]
    assert exeat("lock", "rubygems")[0] == 1, "named, it is a failure"
    put(host, ".gemrc", ":sources: [https://gone.example]\n")
    code, _, err = exeat("lock")
    assert (code, "rubygems: gone.example can't be looked up" in err) == (1, True), "configured, it is a failure"


def test_lock_without_any_source_fails(exeat):
    assert exeat("lock")[0] == 1


def test_lock_keeps_manual_entries(exeat, host, registry):
    assert (
        exeat("lock", "pip.index=https://a.example/s", "pip.files=https://b.example", "rubygems=https://g.example")[0]
        == 0
    )
    put(host, "/etc/pip.conf", PIP)
    registry.page("/simple/pip/", {"files": [{"url": "https://files.example/x.whl"}]})
    put(host, ".gemrc", ":sources: [https://other.example]\n")
    before = exeat.path.read_text()
    code, out, _ = exeat("lock")
    assert (code, "kept as given by hand: pip, rubygems" in out, exeat.path.read_text()) == (0, True, before)
    assert exeat("lock", "rubygems")[0] == 0
    locked = {name: places for name, (_, places) in read_locks([exeat.path], []).items()}
    assert locked["rubygems"]["sources"][0].origin.url == "https://other.example"
    assert locked["pip"]["index"][0].origin.url == "https://a.example/s", "the others stay"


def test_dry_run_writes_nothing(exeat):
    code, out, _ = exeat("lock", "--dry-run", "rubygems=https://g.example")  # in any order
    assert (code, exeat.path.exists()) == (0, False)
    assert f"would be locked in {exeat.path}" in out


def test_failed_lock_leaves_the_file_unchanged(exeat, registry):
    exeat("lock", "rubygems=https://g.example")
    before = exeat.path.read_text()
    registry.addresses = {"l.example": "127.0.0.1"}
    code, out, err = exeat("lock", "rubygems=https://l.example")
    assert (code, out) == (1, "")
    assert err == "exeat: rubygems: l.example leads to 127.0.0.1 (loopback), which no task is to reach\n"
    assert exeat.path.read_text() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lock", "pipp"], "exeat: there is no preset `pipp` to lock; did you mean `pip`?"),
        (["lock", "github"], "exeat: `github` names its hosts itself, so it needs no lock"),
        (["lock", "pip.file=https://x.example"], "exeat: `pip` has no place `file`; it has `index`, `files`"),
        (["lock", "pip="], "exeat: `pip=` needs a URL behind its `=`"),
        (["lock", "pip.index"], "exeat: `pip.index` needs a URL, as in `pip.index=URL`; `pip` alone is looked for"),
        (
            ["lock", "npm", "pip.files"],
            "exeat: `pip.files` needs a URL, as in `pip.files=URL`; `pip` alone is looked for",
        ),
        (["show"], "exeat: `show` needs a NAME; `exeat presets list` lists them"),
        (["show", "githubb"], "exeat: there is no preset `githubb`; did you mean `github`?"),
        (["list", "x"], "exeat: `list` takes no names; `exeat presets show NAME` shows one"),
    ],
)
def test_invalid_arguments_are_refused(words, message, exeat):
    code, out, err = exeat(*words)
    assert (code, out, err) == (2, "", message + "\n")


def test_broken_lock_is_an_error_and_is_kept(exeat):
    exeat.path.parent.mkdir(parents=True)
    exeat.path.write_text("version: 1\nlocked: [x]\n")
    for words in (["lock", "rubygems=https://g.example"], ["show", "pip"], ["list"]):
        assert exeat(*words)[::2] == (2, f"{exeat.path}:2:9: `locked` must be a mapping\n")
    assert exeat.path.read_text().endswith("[x]\n")


def test_directory_writable_by_others_is_refused(exeat):
    exeat.path.parent.mkdir(parents=True)
    exeat.path.parent.chmod(0o777)
    code, _, err = exeat("lock", "rubygems=https://g.example")
    assert (code, exeat.path.exists()) == (2, False)
    assert "can be written by others" in err


def test_list_and_show_print_text_and_json(exeat):
    exeat("lock", "rubygems=https://g.example")
    code, out, _ = exeat("list")
    states = {line.split()[0]: line[line.index("  ") :].split("  ")[1].strip() for line in out.splitlines()}
    assert code == 0
    assert len(states) == 19
    values = {p["name"]: p for p in json.loads(exeat("list", "--format", "json")[1])["presets"]}
    assert (values["rubygems"]["state"], values["pip"]["state"], values["github"]["state"]) == (
        "locked",
        "not locked",
        "static",
    )
    code, out, _ = exeat("show", "rubygems", "github", "pip", "npm")
    assert code == 0
    assert not [line for line in out.splitlines() if line != line.rstrip()]
    for part in (
        "https://g.example\n",
        "given by hand",
        "rubygems:sources  allow",
        "ok      deny   POST https://g.example/api/v1/gems",
        "all of github-read",
        "github:push  ask, by default",
        "(locked: index)",
        "run `exeat presets lock pip`",
        "    POST, PUT, PATCH, DELETE\n    but not {base}/-/npm/v1/security/**\n",
    ):
        assert part in out
    [shown] = json.loads(exeat("show", "rubygems", "--format", "json")[1])["presets"]
    assert shown["locked"] == {"sources": [{"url": "https://g.example", "from": "given by hand"}]}
    assert [rule["id"] for rule in shown["rules"]] == ["sources"]
    assert {test["failure"] for test in shown["tests"]} == {""}
    locked = json.loads(exeat("lock", "rubygems=https://h.example", "--format", "json")[1])
    assert (locked["written"], locked["presets"][0]["changed"], locked["lock"]) == (True, True, str(exeat.path))


SOURCES = st.text(max_size=30)


@given(SOURCES)
def test_any_source_name_round_trips(tmp_path_factory, source):
    from rules.loading.preset_locks import LockedPlace

    places = {"gems": {"sources": (LockedPlace(Origin.parse("https://g.example"), source),), "none": ()}}
    path = tmp_path_factory.getbasetemp() / "written.lock"
    path.write_text(format_lock(places))
    problems = []
    read = {name: found for name, (_, found) in read_locks([path], problems).items()}
    assert read == places or problems
