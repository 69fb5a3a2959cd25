"""`exeat schema`: it knows the keys that the reader knows, takes every rule file here, and refuses what is mistyped."""

import importlib
import json
import re
from pathlib import Path

import jsonschema
import pytest

from enforcer.cli import main
from rules.loading.document import Listing, Mapping, parse
from rules.loading.fields import Section
from rules.loading.json_schema import rule_file_schema
from tests.rules.rule_texts import problems

ROOT = Path(__file__).parents[3]
SCHEMA = rule_file_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)

SECTIONS = {
    f"{path.stem}.{name}": section
    for path in sorted((ROOT / "rules/loading").glob("*.py"))
    for name, section in vars(importlib.import_module(f"rules.loading.{path.stem}")).items()
    if isinstance(section, Section) and name[0] != "_" and re.search(rf"^{name}: Final", path.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_schema_has_every_section_and_key(section):
    schema = SCHEMA["definitions"][section.name] if section.name else SCHEMA
    assert list(schema["properties"]) == list(section.keys)
    assert schema["additionalProperties"] is False
    for key, value in schema["properties"].items():
        assert value["description"].endswith("."), key


def test_schema_has_no_unknown_key():
    assert {section.name for section in SECTIONS.values()} == {"", *SCHEMA["definitions"]}
    assert len(SECTIONS) == 20


def test_every_key_table_is_a_section():
    """Another table would be a mapping that editors know nothing of."""
    tables = {
        (".".join(path.relative_to(ROOT).with_suffix("").parts), name)
        for path in (ROOT / "rules").rglob("*.py")
        for name in re.findall(r"^([A-Z]+_KEYS): Final", path.read_text(), re.MULTILINE)
    }
    assert tables == {("rules.loading.identities", "FILE_KEYS")}


def test_schema_is_a_valid_json_schema():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    names = set(re.findall(r"#/definitions/(\w+)", json.dumps(SCHEMA)))
    assert names == set(SCHEMA["definitions"])


def values(node):
    """Type a document as editors do (YAML 1.2, core schema); ours keeps all text."""
    if isinstance(node, Mapping):
        return {key: values(value) for key, (_, value) in node.pairs.items()}
    if isinstance(node, Listing):
        return [values(item) for item in node.items]
    if node.plain and node.text in {"true", "false"}:
        return node.text == "true"
    if node.plain and re.fullmatch(r"[-+]?\d+", node.text):
        return int(node.text)
    if node.plain and re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+)", node.text):
        return float(node.text)
    return node.text


def complaints(text):
    found = []
    document = parse(text.encode(), "t.yaml", found)
    assert found == []
    return [error.message for error in VALIDATOR.iter_errors(values(document))]


def examples():
    for path in [*(ROOT / "rules").rglob("*.yaml"), *(ROOT / "tests").rglob("*.yaml")]:
        if re.search(r"^rules:|^include:", path.read_text(), re.MULTILINE):
            # A preset that is discovered is a template: what is locked is written in before it is read.
            text = (
                re.sub(r"\{locked: [-\w]+\}", "locked.test", path.read_text())
                .replace("{base}", "")
                .replace("{parent}", "")
            )
            yield pytest.param(text, id=str(path.relative_to(ROOT)))
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
        for number, block in enumerate(block for block in blocks if re.search(r"^version: 1$", block, re.MULTILINE)):
            if ("rules:" in block or "include:" in block) and "people:" not in block:  # that is approvers.yaml
                yield pytest.param(block, id=f"{page.name} {number}")


EXAMPLES = list(examples())


def test_example_files_exist():
    assert len(EXAMPLES) > 3


@pytest.mark.parametrize("text", EXAMPLES)
def test_schema_accepts_every_shipped_rule_file(text):
    assert complaints(text) == []


WHOLE = """version: 1
name: whole
layer: ceiling
include: [{file: other.yaml, only: [a], except: [b, x.test]}, {preset: pip}]
settings:
  {mode: audit, tls: splice, dns: real, dns_pool: 198.18.0.0/15, on_block: reset, on_journal_failure: continue, idle_timeout: 10m,
   upstream: "http://proxy.test:3128", upstream_ca: /etc/ca.pem, upstream_auth: /etc/proxy, upstream_except: [a.test]}
secrets:
  - {id: key, from: {env: KEY}, as: API_KEY, hosts: api.test, in: {header: authorization}}
  - {id: more, from: {command: [/bin/cat, 7]}, as: B, hosts: [b.test, "c.test:8443"], in: [basic, {query: key}], prefix: sk-, not_sent_to: d.test}
  - {id: file, from: {file: /etc/key}, as: C, hosts: d.test, in: basic}
  - {id: unit, from: {systemd: key}, as: D, hosts: d.test, in: [{header: x-key}]}
  - {id: desk, from: {keyring: {service: key}}, as: E, hosts: e.test, in: aws}
  - {id: client, from: {env: C}, as: F, hosts: f.test, in: {form: client_secret}}
sandbox:
  {read: [/srv/data, ~/models], write: /scratch, hide: [~/.netrc, "**/.env", "**/a/*.json"], workspace: review, protected: ["**/*.lock", ci/*],
   approval: {by: release, count: 2, self: false, hold: 2m, open: 24h},
   devices: [kvm, gpu], caches: {pip: ~/.cache/pip, apt: /var/cache/apt}, environment: {keep: [NO_*, EDITOR], set: {A: "1", B: x}}, user: root, hostname: box-1,
   timeout: 2h, limits: {memory: 2GB, cpu: 1.5, processes: 200, files: 1024, disk: 5GB}}
commands:
  - {id: no-apply, run: "terraform apply*", action: deny, why: x, for: {tasks: m-*}}
rules:
  - {id: a, to: 127.1, action: allow}
  - {id: b, to: [a.test, 10.0.0.0/8, {list: ads.txt}], ports: [443, 80, 5432/tcp, 8000-8100/tls], action: deny, why: x}
  - id: c
    to: "*"
    resolves_to: 10.0.0.1
    for: {tasks: "m-*", labels: {team: [a, b], n: 7}}
    http: {methods: GET, paths: [/a/**], query: {q: present, n: 7}, headers: {accept: ["*"]}, body: true, max_url: 2KB, websocket: false}
    git: {repos: acme/*, fetch: true, push: refs/heads/**, changes: [create, delete]}
    credential: key
    when: tainted
    action: ask
    default: false
    except: [x.test, {to: y.test, ports: 22/tcp, http: {methods: [PUT]}, for: {tasks: t}}]
    mode: enforce
    tls: inspect
    ca: corp.pem
    dns_types: [TXT, MX]
    idle_timeout: 90s
    until: 2027-01-31
    limits: {connections: 4, requests: 5, bytes_up: 500B, bytes_down: 2GB, window: 1h, per: task}
    approval: {by: dba, count: 2, self: false, hold: 2m, open: 24h, covers: rule, for: once}
    trust: trusted
    scan: block
    log: full
tests:
  - {attempt: "GET https://a.test/", expect: allow, rule: a, task: t, labels: {a: b}, at: 2026-12-01, headers: {accept: x}, body: true, credential: key, tainted: true}
"""

MISTAKES = [
    ("version: 1", "version: 2"),
    ("[/srv/data,", "[srv/data,"),
    ("write: /scratch", "write: /scratch/*"),
    ("workspace: review", "workspace: yes"),
    ("~/.cache/pip", "/usr/pip"),
    ("user: root", "user: admin"),
    ("box-1", "box.1"),
    ("memory: 2GB", "memory: 2g"),
    ("processes: 200", "processes: 0"),
    ("disk: 5GB", "disc: 5GB"),
    ("action: deny, why: x, for: {tasks: m-*}", "action: allow, why: x"),
    (', set: {A: "1", B: x}', ", pass: A"),
    ("{env: KEY}", "KEY"),
    ("{env: KEY}", "{env: KEY, file: /a}"),
    ("{env: KEY}", "{vault: KEY}"),
    ("{keyring: {service: key}}", "{keyring: {}}"),
    ("as: API_KEY", "as: API-KEY"),
    ("as: API_KEY, ", ""),
    ("in: {header: authorization}", "in: header"),
    ("in: {header: authorization}", "in: {cookie: a}"),
    ("hosts: api.test, ", ""),
    ("layer: ceiling", "layer: top"),
    ("action: ask", "action: asks"),
    ("mode: audit", "mode: audited"),
    ("tls: inspect", "tls: look"),
    ("id: a,", "id: A_1,"),
    ("id: a, ", ""),
    ("rule: a,", "rules: a,"),
    ("expect: allow, ", ""),
    ("{file: other.yaml, ", "{file: other.yaml, preset: pip, "),
    ("{file: other.yaml, ", "{"),
    ("5432/tcp", "5432"),
    ("5432/tcp", "5432/ssh"),
    ("methods: GET", "methods: get"),
    ("methods: GET", "method: GET"),
    ("paths: [/a/**]", "paths: [a]"),
    ("paths: [/a/**]", "paths: []"),
    ("max_url: 2KB", "max_url: 2048"),
    ("push: refs/heads/**", "push: main"),
    ("repos: acme/*, ", ""),
    ("changes: [create, delete]", "changes: [force]"),
    ("idle_timeout: 90s", "idle_timeout: 90"),
    ("until: 2027-01-31", "until: soon"),
    ("connections: 4", "connections: 0"),
    ("per: task", "per: host"),
    ("dns_types: [TXT, MX]", "dns_types: [A]"),
    ("default: false", "default: no"),
    ("when: tainted", "when: always"),
    ("{list: ads.txt}", "{lists: ads.txt}"),
    ("scan: block", "scan: 'on'"),
]


def test_schema_accepts_every_key():
    assert complaints(WHOLE) == []
    text = json.dumps(values(parse(WHOLE.encode(), "t.yaml", [])))
    for section in SECTIONS.values():
        for key in section.keys:
            assert f'"{key}": ' in text, f"`{key}` is not tried"


@pytest.mark.parametrize(("right", "wrong"), MISTAKES, ids=[f"{a} -> {b}" for a, b in MISTAKES])
def test_reader_refuses_what_the_schema_refuses(right, wrong):
    assert right in WHOLE
    text = WHOLE.replace(right, wrong)
    assert complaints(text) != []
    assert told(text) - told(WHOLE), "the reader takes it"


def told(text):
    """What the reader says; each time the file lies in another directory."""
    return {re.sub(r"`/\S*/", "`", message) for message in problems(text)}


def test_schema_command_prints_the_schema(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
