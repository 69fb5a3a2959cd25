"""A rule file with every key, with its own tests, and the policy that it compiles to."""

import re
from pathlib import Path

from rules.loading.identities import parse_identities
from rules.loading.load import failures
from rules.names import HostName
from tests.rules.writing import loaded

TEAM = """\
version: 1
name: web-team
settings: {mode: enforce, tls: inspect, dns: synthetic, dns_pool: 198.18.0.0/15, on_block: explain, on_journal_failure: block, idle_timeout: 10m}
secrets:
  - {id: model-key, from: {env: MODEL_KEY}, as: MODEL_API_KEY, hosts: api.model.example, in: {header: authorization}}

rules:
  - id: registry-internal
    to: registry.corp.example
    resolves_to: [10.20.0.0/16]
    tls: splice
    action: allow
    why: "internal package mirror"

  - id: read-our-repositories
    to: api.github.com
    http: {methods: [GET, HEAD], paths: ["/repos/acme/**", "/user"], query: {ref: absent}}
    action: allow

  - id: feature-branches
    to: github.com
    git: {repos: ["acme/*"], fetch: true, push: ["refs/heads/**"]}
    action: flag

  - id: main-needs-two
    to: github.com
    git: {repos: ["acme/*"], push: [refs/heads/main, "refs/heads/release/*"]}
    action: ask
    approval: {by: release, count: 2, hold: 2m, open: 24h}

  - id: our-model-account
    to: api.model.example
    credential: model-key
    action: allow

  - id: staging-db
    to: db.staging.example
    ports: [5432/tcp]
    for: {tasks: ["migrate-*"], labels: {team: data}}
    limits: {connections: 4, bytes_down: 2GB, per: task}
    until: 2027-01-31
    action: ask
    approval: {by: dba, covers: destination, for: 1h}

  - id: paste-sites
    to: ["**.pastebin.com", "**.transfer.sh"]
    except: [{to: pastebin.com, for: {tasks: triage}, http: {methods: [GET], paths: ["/raw/*"]}}]
    action: deny

  - id: paste-reading
    to: pastebin.com
    http: {methods: [GET]}
    log: pattern
    action: allow

  - id: mail-records
    to: corp.example
    dns_types: [MX, TXT]
    action: allow

  - id: anything-else
    to: "*"
    default: true
    action: ask

tests:
  - {attempt: "GET https://api.github.com/repos/acme/web", expect: allow, rule: read-our-repositories}
  - {attempt: "GET https://api.github.com/repos/acme/web?ref=main", expect: ask, rule: anything-else}
  - {attempt: "GET https://api.github.com/repos/acme/web", body: true, expect: ask, rule: anything-else}
  - {attempt: "git fetch https://github.com/acme/web", expect: flag}
  - {attempt: "git push https://github.com/acme/web refs/heads/topic", expect: flag, rule: feature-branches}
  - {attempt: "git push https://github.com/acme/web refs/heads/main", expect: ask, rule: main-needs-two}
  - {attempt: "git push https://github.com/ACME/Web.git refs/heads/main", expect: ask, rule: main-needs-two}
  - {attempt: "git push https://github.com/acme/web refs/heads/topic delete", expect: ask, rule: anything-else}
  - {attempt: "git push https://github.com/acme/web refs/tags/v1 create", expect: ask, rule: anything-else}
  - {attempt: "tcp db.staging.example:5432", task: migrate-7, labels: {team: data}, at: 2026-12-01, expect: ask, rule: staging-db}
  - {attempt: "tcp db.staging.example:5432", task: migrate-7, labels: {team: data}, at: 2027-02-01, expect: deny, rule: staging-db}
  - {attempt: "tcp db.staging.example:5432", task: web, expect: ask, rule: anything-else}
  - {attempt: "POST https://api.model.example/v1", expect: ask, rule: anything-else}
  - {attempt: "POST https://api.model.example/v1", credential: model-key, expect: allow, rule: our-model-account}
  - {attempt: "GET https://pastebin.com/raw/x", task: triage, expect: allow, rule: paste-reading}
  - {attempt: "GET https://pastebin.com/raw/x", expect: deny, rule: paste-sites}
  - {attempt: "POST https://pastebin.com/raw/x", task: triage, expect: deny, rule: paste-sites}
  - {attempt: "GET wss://pastebin.com/raw/x", task: triage, expect: deny, rule: paste-sites}
  - {attempt: "dns MX corp.example", expect: allow}
  - {attempt: "dns SRV corp.example", expect: deny}
  - {attempt: "dns MX nobody.example", expect: ask}
"""


def test_language_sample_loads_and_its_tests_pass():
    files = loaded(TEAM)
    assert [str(problem) for problem in failures(files)] == []
    assert len(files.tests) == 21
    assert files.warnings == ()


def test_order_of_rules_has_no_effect():
    rules = TEAM.split("\nrules:\n")[1].split("\ntests:", maxsplit=1)[0]
    turned = TEAM.replace(rules, "\n" + "\n\n".join(reversed(rules.strip("\n").split("\n\n"))) + "\n")
    assert loaded(turned).policy.revision == loaded(TEAM).policy.revision
    assert failures(loaded(turned)) == []


def test_gate_inspects_what_the_sample_needs():
    asked = loaded(TEAM).policy
    looks = {
        name: (asked.looks_at(HostName(name), 443).requests, asked.looks_at(HostName(name), 443).git)
        for name in ("registry.corp.example", "api.github.com", "github.com", "pastebin.com", "nobody.example")
    }
    assert looks == {
        "registry.corp.example": (False, False),
        "api.github.com": (True, False),
        "github.com": (True, True),
        "pastebin.com": (True, False),
        "nobody.example": (False, False),
    }
    assert asked.for_matters


def test_documented_identities_are_parsed():
    docs = (Path(__file__).parents[3] / "docs/reference/rules.md").read_text()
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", docs, re.DOTALL) if "identities:" in block]
    identities = parse_identities(example.encode(), "identities.yaml")
    assert identities.refuse("alice", "nightly", {"team": "data"}) == ""
    assert "needs the label `team`" in identities.refuse("alice", "nightly", {})
