"""Presets: each holds what it promises, and an include keeps exactly the part that it names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer.cli import main
from rules.loading.document import parse
from rules.loading.fields import Reader
from rules.loading.load import failures, load, preset_names, read, read_preset
from rules.loading.preset_locks import Origin, list_places, read_lock
from rules.loading.rule_schema import Suffix, suffix_of_wildcard
from rules.presets import shipped
from rules.presets.shipped import preset_source
from rules.problems import RuleFileError
from rules.values.globs import may_overlap
from rules.values.names import HostName
from rules.values.patterns import NamePattern
from rules.verdicts import Verdict
from tests.support import harness

LOCK = """version: 1
locked:
  pip:
    index: [{url: "https://mirror.example/pypi/simple", from: pip.conf}]
    files: [{url: "https://files.example", from: the index}]
  npm:
    registry: [{url: "https://npm.example"}, {url: "http://npm.corp.example:8081/npm", resolves_to: [10.1.2.3]}]
    tarballs: [{url: "https://npm.example"}]
  apt: {archives: [{url: "http://deb.example/debian"}, {url: "https://deb.example/security"}]}
  crates: {index: [{url: "https://index.example"}], files: [{url: "https://crates.example/dl"}]}
  go-modules: {proxy: [{url: "https://go.example"}], checksums: [{url: "https://sum.example"}]}
  rubygems: {sources: [{url: "https://gems.example"}]}
  maven-central: {repository: [{url: "https://maven.example/maven2"}]}
  conda: {channels: [{url: "https://conda.example/main"}]}
  docker-hub: {registry: [{url: "https://r.example"}], token: [{url: "https://t.example/token"}], layers: [{url: "https://l.example"}]}
  ghcr: {registry: [{url: "https://g.example"}], token: [{url: "https://g.example/token"}], layers: [{url: "https://gl.example"}]}
"""
DISCOVERED = [name for name in preset_names() if list_places(parse(preset_source(name), name, []))]
ASKED = {"static": "github-read github gitlab huggingface openai-api anthropic-api google-ai-api aws-metadata-deny exfiltration-sites-deny", "discovered": "docker-hub ghcr crates go-modules rubygems maven-central conda pip npm apt"}  # fmt: skip
# All that a preset lets out but GET and HEAD; whatever isn't here is read only.
WRITING = {
    "huggingface:paths-info": {"POST /api/models/*/*/paths-info/*", "POST /api/datasets/*/*/paths-info/*"},
    "openai-api:ask-models": "POST", "openai-api:sign-in": "POST", "openai-api:ask-by-login": "POST", "anthropic-api:ask-models": "POST", "anthropic-api:sign-in": "POST", "google-ai-api:ask-models": "POST",
}  # fmt: skip


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "presets.lock"
    path.write_text(LOCK)
    path.chmod(0o644)
    return path


@pytest.fixture
def web(tmp_path, lock):
    def made(include, rest="", **files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        (tmp_path / "web.yaml").write_text(f"version: 1\ninclude:\n  - {include}\n{rest}")
        return read([tmp_path / "web.yaml"], [lock])

    return made


def told(made, *words, **files):
    with pytest.raises(RuleFileError) as error:
        made(*words, **files)
    return [str(problem._replace(file=problem.file.rpartition("/")[2])) for problem in error.value.problems]


def decide(loaded, attempt):
    from rules.loading.cases import parse_attempt, verdict_of

    decision = parse_attempt(attempt).decide(loaded.policy)
    return " ".join((verdict_of(decision), decision.reason, ",".join(decision.rules))).strip()


def test_shipped_presets_are_the_documented_ones():
    assert set(DISCOVERED) == set(ASKED["discovered"].split())
    assert set(preset_names()) == set(" ".join(ASKED.values()).split())


@pytest.mark.parametrize("between", [", ", ",\n  "], ids=["on one line", "on two lines"])
def test_preset_test_cases_are_reported_one_by_one(tmp_path, monkeypatch, between):
    wants = [f"{{attempt: 'GET https://{host}.example/', expect: allow}}" for host in ("x", "y", "x")]
    rules = "rules: [{id: x, to: x.example, action: allow}]\n"
    (tmp_path / "t.yaml").write_text(f"version: 1\n{rules}tests: [{between.join(wants)}]\n")
    monkeypatch.setattr(shipped, "read_preset", lambda *_: read([tmp_path / "t.yaml"]))
    first, second, third = shipped._tests("t", ())
    assert (first.failure, third.failure) == ("", "")
    assert second.failure.startswith("test failed: `GET https://y.example/` should be allow and is deny")


@pytest.mark.parametrize("name", preset_names())
def test_preset_loads_has_why_and_passes_its_tests(name, lock):
    loaded = read_preset(name, [lock])
    assert failures(loaded) == []
    assert loaded.warnings == ()
    assert [rule.id for rule in loaded.policy.rules if not rule.why] == []
    expected = {case.expect.value for case in loaded.tests}
    assert expected == {"deny"} if name.endswith("-deny") else {"allow"} < expected
    named = {case.rule.rpartition(":")[2] for case in loaded.tests if case.rule}
    own = {ident.partition(":")[2] for ident in loaded.policy.rule_ids if ident.startswith(name + ":")}
    assert {ident for ident in own if not ident.endswith("-2")} <= named, "each rule is in a test"
    assert loaded.settings is None


@pytest.mark.parametrize("name", preset_names())
def test_presets_allow_reads_at_exact_hosts(name, lock):
    for rule in read_preset(name, [lock]).policy.rules:
        if not rule.allows:
            continue
        assert [p.text for p in rule.names if p.below is not None] == [], "a wildcard that lets out"
        if rule.git is not None:
            assert (rule.git.fetch, rule.git.push) == (True, None), rule.id
            continue
        assert rule.http is not None, rule.id
        methods = rule.http.methods
        assert methods is not None, rule.id
        if methods <= {"GET", "HEAD"}:
            continue
        listed = WRITING[rule.id]
        assert methods == {"POST"}
        assert all("**" not in path.text for path in rule.http.paths)
        if listed != "POST":
            assert {f"POST {path.text}" for path in rule.http.paths} == listed


def test_no_preset_wildcard_is_below_a_public_suffix(lock):
    for name in preset_names():
        for rule in read_preset(name, [lock]).policy.rules:
            shared = [p.text for p in rule.names if p.below and suffix_of_wildcard(p.below) is not Suffix.NONE]
            assert not rule.allows or not shared, rule.id


@pytest.mark.parametrize("name", DISCOVERED)
def test_discovered_preset_names_no_host(name):
    root = parse(preset_source(name), name, [])
    for rule in root.pairs["rules"][1].items:
        assert list(rule.pairs["to"][1].pairs) == ["locked"]
    for test in root.pairs["tests"][1].items:
        assert "://" not in test.pairs["attempt"][1].text


def test_discovered_preset_uses_its_lock(web):
    loaded = web("{preset: npm}")
    assert loaded.policy.rule_ids == ("npm:publish", "npm:publish-2", "npm:registry", "npm:registry-2", "npm:tarballs")
    table = {
        "GET https://npm.example/abbrev": "allow rule npm:registry,npm:tarballs",
        "GET https://npm.example/@scope%2fname": "allow rule npm:registry,npm:tarballs",
        "GET http://npm.corp.example:8081/npm/abbrev": "allow rule npm:registry-2",
        "GET http://npm.corp.example:8081/other/abbrev": "deny no_rule",
        "GET https://npm.corp.example/npm/abbrev": "deny no_rule",
        "PUT https://npm.example/abbrev": "ask approval_unavailable npm:publish",
        "POST https://npm.example/-/npm/v1/security/advisories/bulk": "deny no_rule",
        "POST http://npm.corp.example:8081/npm/-/npm/v1/security/advisories/bulk": "deny no_rule",
        "POST http://npm.corp.example:8081/-/npm/v1/security/advisories/bulk": "ask approval_unavailable npm:publish-2",
        "GET https://sub.npm.example/abbrev": "deny no_rule",
    }
    assert {attempt: decide(loaded, attempt) for attempt in table} == table
    assert [list(map(str, rule.resolves_to or ())) for rule in loaded.policy.rules if rule.allows] == [
        [], ["10.1.2.3/32"], [],
    ]  # fmt: skip


def test_lock_is_a_source_and_the_shipped_file_is_not(web, lock, tmp_path):
    assert web("{preset: pip}").policy.sources == (tmp_path / "web.yaml", lock)
    assert web("{preset: github}").policy.sources == (tmp_path / "web.yaml",)


GITHUB_FILE = """version: 1
name: more
rules:
  - {id: a, to: [a.example, '*.b.example'], action: allow}
  - {id: d, to: d.example, action: deny}
tests:
  - {attempt: "GET https://a.example/", expect: allow, rule: a}
  - {attempt: "GET https://x.b.example/", expect: allow, rule: more:a}
  - {attempt: "GET https://d.example/", expect: deny, rule: d}
  - {attempt: "GET https://z.example/", expect: deny}
"""
KEPT = [
    ("{preset: github-read}", {"GET https://api.github.com/user": "allow rule github-read:api"}),
    ("{preset: github-read, except: [api]}", {"GET https://api.github.com/user": "deny no_rule", "GET https://github.com/a": "allow rule github-read:site"}),
    ("{preset: github-read, only: api}", {"GET https://api.github.com/user": "allow rule github-read:api", "GET https://github.com/a": "deny no_rule"}),
    ("{preset: github-read, except: raw.githubusercontent.com}", {"GET https://raw.githubusercontent.com/a": "deny no_rule", "GET https://codeload.github.com/a": "allow rule github-read:files"}),
    ("{preset: github-read, except: ['*.githubusercontent.com', site]}", {"GET https://raw.githubusercontent.com/a": "deny no_rule", "GET https://github.com/a": "deny no_rule", "GET https://api.github.com/a": "allow rule github-read:api"}),
    ("{preset: github, except: [api]}", {"GET https://api.github.com/user": "deny no_rule", "POST https://api.github.com/user": "ask approval_unavailable github:api-write"}),
    ("{preset: exfiltration-sites-deny, except: [gist.github.com]}", {"GET https://gist.github.com/": "deny no_rule", "GET https://pastebin.com/": "deny rule exfiltration-sites-deny:pastes"}),
    ("{preset: pip, except: [upload]}", {"POST https://mirror.example/pypi/simple/": "deny no_rule", "GET https://mirror.example/pypi/simple/x/": "allow rule pip:index"}),
    ("{preset: npm, except: [registry]}", {"GET http://npm.corp.example:8081/npm/abbrev": "deny no_rule", "GET https://npm.example/a": "allow rule npm:tarballs"}),
    ("{preset: npm, only: [registry], except: [npm.example]}", {"GET http://npm.corp.example:8081/npm/abbrev": "allow rule npm:registry-2", "GET https://npm.example/a": "deny no_rule"}),
    ("{file: more.yaml, only: [a], except: [x.b.example]}", {"GET https://a.example/": "allow rule more:a", "GET https://x.b.example/": "deny no_rule", "GET https://y.b.example/": "allow rule more:a"}),
]  # fmt: skip


@pytest.mark.parametrize(("include", "table"), KEPT, ids=[row[0] for row in KEPT])
def test_include_keeps_the_named_rules(include, table, web):
    loaded = web(include, more=GITHUB_FILE)
    assert {attempt: decide(loaded, attempt) for attempt in table} == table
    assert failures(loaded) == []


SECRETS = """secrets:
  - {id: key, from: {env: KEY}, as: KEY, hosts: [api.github.com, a.example], in: {header: authorization}}
"""
CREDENTIAL = [
    ("{preset: github, credential: key}", {
        "GET https://api.github.com/user": {"": "deny credential_mismatch", "key": "allow rule github-read:api"},
        "POST https://api.github.com/user": {"": "deny no_rule", "key": "ask approval_unavailable github:api-write"},
    }),
    ("{file: more.yaml, only: [a, d], credential: key}", {
        "GET https://a.example/": {"": "deny credential_mismatch", "key": "allow rule more:a"},
        "GET https://d.example/": {"": "deny rule more:d", "key": "deny rule more:d"},  # a deny with it would deny less
    }),
]  # fmt: skip


@pytest.mark.parametrize(("include", "table"), CREDENTIAL, ids=[row[0] for row in CREDENTIAL])
def test_include_with_credential_requires_it_except_for_denies(include, table, web):
    from rules.loading.cases import parse_attempt, verdict_of

    loaded = web(include, SECRETS, more=GITHUB_FILE)
    for attempt, by_credential in table.items():
        for credential, expected in by_credential.items():
            question = parse_attempt(attempt)
            question = question._replace(request=question.request._replace(credential=credential))
            decision = question.decide(loaded.policy)
            assert f"{verdict_of(decision)} {decision.reason} {','.join(decision.rules)}".strip() == expected, attempt
    assert loaded.tests == (), "the file's tests say nothing of a credential"


def test_every_preset_accepts_a_credential(web):
    for name in preset_names():
        loaded = web(f"{{preset: {name}, credential: key}}", SECRETS)
        assert {rule.credential for rule in loaded.policy.rules if rule.action is not Verdict.DENY} <= {"key"}
        assert {rule.credential for rule in loaded.policy.rules if rule.action is Verdict.DENY} <= {None}


WRONG = [
    ("{preset: openai-api, credential: nobodys}", "openai-api.yaml:6:5: there is no secret `nobodys`: `secrets` say what there is"),
    ("{preset: openai-api, credential: [a]}", "web.yaml:3:38: `credential` must be one word or text, not a list"),
    ("{file: raw.yaml, credential: key}", "web.yaml:3:34: `raw:db` allows traffic that the gate does not read, so no `credential` can be required there: leave the rule out with `except`"),
    ("{file: other.yaml, credential: key}", "web.yaml:3:36: `other:a` has the `credential` `theirs` already: leave the rule out with `except`"),
    ("{preset: github-read}\n  - {preset: github-read, credential: key}", "web.yaml:4:5: `github-read` is included already, with another `only`, `except` or `credential`: one of them is enough"),
    ("{preset: github-raed}", "web.yaml:3:5: there is no preset `github-raed`; did you mean `github-read`?"),
    ("{preset: zzz}", "web.yaml:3:5: there is no preset `zzz`; `exeat presets list` lists them"),
    ("{preset: ../github}", "web.yaml:3:14: `../github` must be at most 63 lower-case letters, digits and hyphens: `github`"),
    ("{preset: github, file: more.yaml}", "web.yaml:3:5: an `include` has both `file` and `preset`: write two entries"),
    ("{only: [a]}", "web.yaml:3:5: an `include` needs `file` or `preset`"),
    ("github", "web.yaml:3:5: an `include` names the kind: write `{preset: github}`"),
    ("corp/web.yml", "web.yaml:3:5: an `include` names the kind: write `{file: corp/web.yml}`"),
    ("[github]", "web.yaml:3:5: an `include` must be a mapping of `file`, `preset`, `only`, `except`, `credential`"),
    ("{preset: github-read, exept: [api]}", "web.yaml:3:27: `exept` is not a key of an `include`; did you mean `except`?"),
    ("{preset: github-read, except: [apii]}", "web.yaml:3:36: no rule of this include has the id `apii`; did you mean `api`?"),
    ("{preset: github-read, only: [zzzz]}", "web.yaml:3:34: no rule of this include has the id `zzzz`"),
    ("{preset: github-read, except: [api.githbu.com]}", "web.yaml:3:36: no rule that this include keeps covers `api.githbu.com`"),
    ("{preset: github-read, only: [site], except: [api.github.com]}", "web.yaml:3:50: no rule that this include keeps covers `api.github.com`"),
    ("{preset: github-read, only: [api], except: [api]}", "web.yaml:3:49: `api` is in `only` and in `except`"),
    ("{preset: github-read, except: []}", "web.yaml:3:35: `except` is empty: leave it out, or list what it covers"),
    ("{preset: github-read, except: [{to: api.github.com}]}", "web.yaml:3:36: `except` of an `include` is a list of ids and names"),
    ("{preset: github-read, except: ['a..b']}", "web.yaml:3:36: `a..b` has an empty label"),
    ("{preset: github-read}\n  - {preset: github-read, except: [api]}", "web.yaml:4:5: `github-read` is included already, with another `only`, `except` or `credential`: one of them is enough"),
    ("{file: sets.yaml}", "sets.yaml:2:11: an included file may not have `settings`"),
]  # fmt: skip


@pytest.mark.parametrize(("include", "line"), WRONG, ids=[row[0] for row in WRONG])
def test_malformed_include_is_an_error(include, line, web):
    files = {
        "sets": "version: 1\nsettings: {mode: audit}\n",
        "raw": "version: 1\nrules: [{id: db, to: a.example, ports: 5432/tcp, action: allow}]\n",
        "other": "version: 1\nrules: [{id: a, to: a.example, credential: theirs, action: allow}]\n",
    }
    secrets = SECRETS + SECRETS.partition("\n")[2].replace("key", "theirs").replace("KEY", "THEIRS")
    assert line in told(web, include, secrets if "credential" in include else "", **files)


def test_repeated_include_counts_once(web):
    loaded = web("{preset: github-read, except: [api, site]}\n  - {preset: github-read, except: [site, api]}")
    assert loaded.policy.rule_ids == ("github-read:fetch", "github-read:files")


def test_included_test_cases_run_where_their_rule_is_kept(web):
    table = {
        "{file: more.yaml}": 4,
        "{file: more.yaml, except: [d]}": 2,
        "{file: more.yaml, only: [a], except: [x.b.example]}": 1,
    }
    assert {include: len(web(include, more=GITHUB_FILE).tests) for include in table} == table


def test_test_cases_of_a_preset_see_only_its_rules(web):
    loaded = web("{preset: github-read}", "rules:\n  - {id: no-api, to: api.github.com, action: deny}\n")
    assert loaded.tests == ()
    assert decide(loaded, "GET https://api.github.com/user") == "deny rule web:no-api"


def test_other_rules_allow_only_what_a_preset_asks_by_default(web):
    rule = "rules:\n  - {id: ours, to: github.com, git: {repos: [acme/web], push: [refs/heads/*]}, action: allow}\n"
    loaded = web("{preset: github}", rule)
    assert decide(loaded, "git push https://github.com/acme/web refs/heads/x") == "allow rule web:ours"
    for attempt in ("evil/web refs/heads/x", "acme/web refs/tags/v1", "acme/web refs/heads/x delete"):
        assert decide(loaded, f"git push https://github.com/{attempt}") == "ask approval_unavailable github:push"


LOCKS = [
    ("version: 2\nlocked: {}\n", "presets.lock:1:1: this version of exeat reads locks of `version: 1`: run `exeat presets lock` again"),
    ("locked: {}\n", "presets.lock:1:1: this version of exeat reads locks of `version: 1`: run `exeat presets lock` again"),
    ("version: 1\nlokced: {}\n", "presets.lock:2:1: `lokced` is not a key of a lock; did you mean `locked`?"),
    ("version: 1\nlocked: [pip]\n", "presets.lock:2:9: `locked` must be a mapping"),
    ("version: 1\nlocked: {pip: {index: x}}\n", "presets.lock:2:23: what is locked is a list of `{url, from}`"),
    ("version: 1\nlocked: {pip: {index: [{form: x}]}}\n", "presets.lock:2:25: `form` is not a key of an entry of a lock; did you mean `from`?"),
    ("version: 1\nlocked: {pip: {index: [{from: x}]}}\n", "presets.lock:2:24: an entry of a lock needs `url`"),
    ("version: 1\nlocked: {pip: {index: [{url: 'ftp://x.example'}]}}\n", "presets.lock:2:30: `ftp://x.example` must be a URL that begins with `https://` or `http://`"),
    ("version: 1\nlocked: {pip: {index: [{url: 'https://*.example'}]}}\n", "presets.lock:2:30: "),
    ("version: 1\nlocked: {pip: {index: [{url: 'https://u:p@x.example'}]}}\n", "presets.lock:2:30: `https://u:p@x.example`: a URL in a lock may not contain a user or a password"),
    ("version: 1\nlocked: {pip: {index: [{url: 'https://x.example/**'}]}}\n", "presets.lock:2:30: `https://x.example/**` has a path that can be read more than one way"),
    ("version: 1\nlocked: {pip: {index: [{url: 'https://x.example/a/../b'}]}}\n", "presets.lock:2:30: `https://x.example/a/../b` has a path"),
    ("version: 1\nlocked: {pip: {index: [{url: 'https://x.example:99999'}]}}\n", "presets.lock:2:30: `https://x.example:99999` has no port between 1 and 65535"),
    ("version: 1\nlocked: {pip: {index: [{url: 'https://x.example', resolves_to: [10.0.0.0/33]}]}}\n", "presets.lock:2:65: "),
    ("version: 1\nlocked: {pip: {index: [{url: 'https://x.example'}]}}\n", "web.yaml:3:5: `{lock}` has no `files` of `pip`: run `exeat presets lock pip` again"),
    ("version: 1\nlocked: {npm: {}}\n", "web.yaml:3:5: `pip` is not locked on this machine: run `exeat presets lock pip`, and review what it finds"),
    ("", "web.yaml:3:5: `pip` is not locked on this machine"),
    ("version: 1\nlocked: &a {pip: *a}\n", "presets.lock:2:9: anchors"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), LOCKS, ids=[row[0].replace("\n", " ")[:60] for row in LOCKS])
def test_malformed_lock_is_an_error_and_allows_nothing(text, line, web, lock):
    lock.write_text(text)
    with pytest.raises(RuleFileError) as error:
        web("{preset: pip}")
    assert len(error.value.problems) <= 2
    assert any(line.replace("{lock}", str(lock)) in str(problem) for problem in error.value.problems), str(error.value)


def test_empty_lock_entry_allows_nothing(web, lock):
    lock.write_text("version: 1\nlocked: {pip: {index: [{url: 'https://x.example'}], files: []}}\n")
    assert web("{preset: pip}").policy.rule_ids == ("pip:index", "pip:metadata", "pip:upload")
    assert failures(read_preset("pip", [lock])) == []


def test_locked_metadata_address_allows_nothing(web, lock):
    lock.write_text(
        "version: 1\nlocked: {pip: {index: [{url: 'https://x.example', resolves_to: [169.254.0.0/16]}], files: []}}\n"
    )
    assert "link-local: list the single addresses" in told(web, "{preset: pip}")[0]


def test_lock_writable_by_others_is_refused(web, lock):
    lock.chmod(0o666)
    assert any("presets.lock:1:1: `" in line and "others can write it" in line for line in told(web, "{preset: pip}"))


def test_lock_of_another_user_is_refused(web, lock):
    harness.give_away(lock)
    assert any("others can write it" in line for line in told(web, "{preset: pip}"))


def test_first_lock_applies_and_a_missing_one_is_skipped(tmp_path, lock):
    mine = tmp_path / "mine.lock"
    mine.write_text("version: 1\nlocked: {rubygems: {sources: [{url: 'https://evil.example'}]}, own: {}}\n")
    file = tmp_path / "web.yaml"
    file.write_text("version: 1\ninclude: [{preset: rubygems}]\n")
    for locks, host in (([lock, mine], "gems.example"), ([tmp_path / "none", mine], "evil.example")):
        assert [name.text for rule in load([file], locks).rules for name in rule.names] == [host]


def test_lock_beside_the_rules_is_ignored(tmp_path, lock, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rules.loading.preset_locks._SYSTEM_LOCK", tmp_path / "none")
    (tmp_path / "web.yaml").write_text("version: 1\ninclude: [{preset: pip}]\n")
    with pytest.raises(RuleFileError, match="not locked"):
        load([tmp_path / "web.yaml"])
    (tmp_path / "home/exeat").mkdir()
    lock.rename(tmp_path / "home/exeat/presets.lock")
    assert "pip:index" in load([tmp_path / "web.yaml"]).rule_ids


@pytest.mark.parametrize("command", ["check", "test"])
def test_check_and_test_read_a_given_lock(command, tmp_path, lock, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))  # where there is none
    (tmp_path / "web.yaml").write_text(
        "version: 1\ninclude: [{preset: pip}]\ntests: [{attempt: 'GET https://files.example/a', expect: allow}]\n"
    )
    file = str(tmp_path / "web.yaml")
    assert main([command, file]) in {1, 2}
    assert "`pip` is not locked on this machine" in "".join(capsys.readouterr())
    assert main([command, "--lock", str(lock), file]) == 0
    lock.chmod(0o666)
    assert main([command, "--lock", str(lock), file]) in {1, 2}
    assert "others can write it" in "".join(capsys.readouterr())


def test_plain_rule_file_cannot_use_the_lock(web):
    lines = told(web, "{preset: pip}", "rules:\n  - {id: a, to: {locked: index}, action: allow}\n")
    assert lines[0].startswith("web.yaml:5:")


URLS = [
    ("https://A.Example/", "https://a.example"),
    ("https://a.example:443/x/", "https://a.example/x"),
    ("http://a.example:80", "http://a.example"),
    ("https://a.example:8443/x/y", "https://a.example:8443/x/y"),
    ("https://[2001:db8::1]:444/x", "https://[2001:db8::1]:444/x"),
    ("https://10.0.0.1", "https://10.0.0.1"),
]


@pytest.mark.parametrize(("text", "url"), URLS)
def test_url_has_one_spelling(text, url):
    origin = Origin.parse(text)
    assert origin.url == url
    assert Origin.parse(url) == origin


@given(st.text(alphabet="htps:/.*@[]{}%~\\?#0189ax-\n ", max_size=40))
def test_arbitrary_url_is_parsed_or_refused(text):
    try:
        origin = Origin.parse("https://" + text)
    except ValueError:
        return
    assert not set("*{}%\\?# \n") & set(origin.url)
    assert "@" not in origin.url.split("/")[2]  # in a path it is npm's
    assert Origin.parse(origin.url) == origin


@given(st.binary(max_size=200) | st.text(alphabet="version: 1\nlocked{}[]url:pi\"'", max_size=80).map(str.encode))
def test_arbitrary_lock_is_parsed_or_an_error(data):
    problems = []
    assert isinstance(read_lock(Reader("lock", problems), parse(data, "lock", problems)), dict)


LABEL = st.sampled_from(["a", "b", "ab", "example"])
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
PATTERN = st.one_of(
    NAME,
    NAME.map("*.{}".format),
    NAME.map("**.{}".format),
    NAME.map("a*.{}".format),
    NAME.map("x.*.{}".format),
    st.just("*"),
)


@given(PATTERN, PATTERN, NAME)
def test_overlapping_urls_are_found(one, other, name):
    patterns = first, second = NamePattern.parse(one), NamePattern.parse(other)
    meet = may_overlap(first.parts, second.parts)
    assert meet == may_overlap(second.parts, first.parts)
    if all(pattern.matches(HostName(name)) for pattern in patterns):
        assert meet
