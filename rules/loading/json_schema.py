"""The rule language as JSON Schema (draft-07), for editors: made of the tables that the reader itself reads by.

A key that a table has and this module doesn't describe is a KeyError, and so a failing test; values of closed lists are
taken from their enums. An editor's schema is a help and no judge: what it lets pass, `exeat check` may still refuse.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from rules.attempt import Change
from rules.limits import Covers, Per
from rules.loading.fields import RECORD_TYPES
from rules.loading.keys import (
    APPROVAL_KEYS,
    COMMAND_KEYS,
    ENVIRONMENT_KEYS,
    EXCEPT_KEYS,
    FILE_KEYS,
    FOR_KEYS,
    FROM_KEYS,
    GIT_KEYS,
    HTTP_KEYS,
    IN_KEYS,
    INCLUDE_KEYS,
    LIMITS_KEYS,
    MERGE_KEYS,
    RESOURCE_KEYS,
    RULE_KEYS,
    SANDBOX_KEYS,
    SECRET_KEYS,
    SETTINGS_KEYS,
    TEST_KEYS,
)
from rules.loading.secret_schema import IN_WORDS
from rules.rule import Presence
from rules.sandbox import BoxUser, WorkspaceMode
from rules.verdicts import DnsMode, LayerKind, Log, Mode, OnBlock, OnJournalFailure, Scan, TlsMode, Trust, Verdict

type Schema = dict[str, Any]

ADDRESS: Final = "https://exeat.example/rules.schema.json"

_SLUG: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"}
_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_WORD: Final[Schema] = {"type": ["string", "number", "boolean"]}  # a reader of YAML may take text for another type
_DURATION: Final[Schema] = {"type": "string", "pattern": "^[0-9]{1,6}[smhd]$"}
_SIZE: Final[Schema] = {"type": "string", "pattern": "^[0-9]{1,9}(B|[KMGT](i?B)?)$"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 1}
_DAY: Final[Schema] = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}
_FLAG: Final[Schema] = {"type": "boolean"}
_PORTS: Final[Schema] = {
    "anyOf": [
        {"enum": [443, 80]},
        {"type": "string", "pattern": "^(443|80|[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?/(tls|http|tcp|udp))$"},
    ]
}
_PATH: Final[Schema] = {"type": "string", "pattern": "^/"}
_METHOD: Final[Schema] = {"type": "string", "pattern": "^[A-Z0-9!#$%&'*+.^_`|~-]+$"}


def _one_or_more(schema: Schema) -> Schema:
    """Allow one value where a list is meant."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def _one_of(kind: type[StrEnum]) -> Schema:
    return {"enum": [member.value for member in kind]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _mapping(values: Schema) -> Schema:
    return {"type": "object", "minProperties": 1, "additionalProperties": values}


_NAMED_VALUES: Final = _mapping({"anyOf": [{"enum": [each.value for each in Presence]}, _one_or_more(_WORD)]})
_TARGETS: Final = _one_or_more(_WORD)

# For each table of the reader: what a key is for, in a sentence, and what it may be.
FILE: Final[dict[str, tuple[str, Schema]]] = {
    "version": ("The version of the language.", {"enum": [1, "1"]}),
    "name": ("What the file goes by: rules are cited as `name:id`. By default the file's own name.", _SLUG),
    "layer": (
        "This file votes alone: a `mandatory` layer's silence is no vote, a `ceiling` layer's silence is deny.",
        _one_of(LayerKind),
    ),
    "include": ("Other rule files, and presets.", {"type": "array", "items": _ref("include")}),
    "settings": ("What holds for all rules.", _ref("settings")),
    "secrets": (
        "Values that the task never has, and where the gate puts them.",
        {"type": "array", "items": _ref("secret")},
    ),
    "sandbox": ("The box that a task runs in.", _ref("sandbox")),
    "commands": ("Programs that need leave to run.", {"type": "array", "items": _ref("command")}),
    "rules": ("What may leave. The strictest rule that matches wins.", {"type": "array", "items": _ref("rule")}),
    "tests": ("What must come out, tried before every load.", {"type": "array", "items": _ref("test")}),
}
INCLUDE: Final[dict[str, tuple[str, Schema]]] = {
    "file": ("A rule file, relative to this one.", _TEXT),
    "preset": ("The name of a preset: see `exeat presets list`.", _SLUG),
    "only": ("The ids of the rules that are kept.", _one_or_more(_SLUG)),
    "except": ("Ids of rules that are left out, or names that no rule of it covers.", _one_or_more(_TEXT)),
    "credential": ("The secret that every rule of the include requires, except its denies.", _SLUG),
}
SETTINGS: Final[dict[str, tuple[str, Schema]]] = {
    "mode": ("`audit` lets out what no rule decides, and tells.", _one_of(Mode)),
    "tls": ("What an allow or flag means that doesn't say.", _one_of(TlsMode)),
    "dns": ("What lookups are answered with: addresses that stand for names, or the real ones.", _one_of(DnsMode)),
    "dns_pool": ("Where synthetic addresses come from: an IPv4 network, at least a /24.", _TEXT),
    "on_block": ("How a refusal reaches the task.", _one_of(OnBlock)),
    "on_journal_failure": ("What becomes of what can't be told, when the disk is full.", _one_of(OnJournalFailure)),
    "idle_timeout": ("How long a connection may be silent, up to 7d.", _DURATION),
    "upstream": ("The company's proxy.", {"type": "string", "pattern": "^(http|socks5h?)://[^/@]+:[0-9]+/?$"}),
    "upstream_auth": ("A file that holds what the proxy is told: `user:password`.", _PATH),
    "upstream_except": ("Names and networks that are dialled directly.", _one_or_more(_TEXT)),
    "upstream_ca": ("A file of certificates that are trusted beside the host's own store.", _PATH),
}
HTTP: Final[dict[str, tuple[str, Schema]]] = {
    "methods": ("Methods, in upper case.", _one_or_more(_METHOD)),
    "paths": ("Paths: `*` within a segment, `**` any number of segments.", _one_or_more(_PATH)),
    "query": ("Parameters of the query, each with its values, `present` or `absent`.", _NAMED_VALUES),
    "headers": ("Header fields, each with its values, `present` or `absent`.", _NAMED_VALUES),
    "body": (
        "Lets bodies out; on rules that hold back, whether there is one. By default not with GET and HEAD.",
        _FLAG,
    ),
    "max_url": ("The longest URL that is let out.", _SIZE),
    "websocket": ("Whether the request opens a WebSocket.", _FLAG),
}
GIT: Final[dict[str, tuple[str, Schema]]] = {
    "repos": ("Repositories on the host, as in `acme/*`.", _one_or_more(_TEXT)),
    "fetch": ("Whether fetching is covered.", _FLAG),
    "push": ("Refs that pushes are covered to.", _one_or_more({"type": "string", "pattern": "^refs/"})),
    "changes": ("What a push may do to a ref.", _one_or_more(_one_of(Change))),
}
FOR: Final[dict[str, tuple[str, Schema]]] = {
    "tasks": ("Names of tasks.", _one_or_more(_WORD)),
    "labels": ("Labels that a task carries, each with its values.", _mapping(_one_or_more(_WORD))),
}
LIMITS: Final[dict[str, tuple[str, Schema]]] = {
    "connections": ("How many connections.", _COUNT),
    "requests": ("How many requests.", _COUNT),
    "bytes_up": ("How much leaves.", _SIZE),
    "bytes_down": ("How much comes back.", _SIZE),
    "window": ("In which time; by default as long as the one that is counted lives.", _DURATION),
    "per": ("Who shares the count.", _one_of(Per)),
}
APPROVAL: Final[dict[str, tuple[str, Schema]]] = {
    "by": ("The group that approves.", _SLUG),
    "count": ("How many have to.", _COUNT),
    "self": ("Whether the one who started the task may; not beside `by`.", _FLAG),
    "hold": ("How long the attempt waits.", _DURATION),
    "open": ("How long the question stays open.", _DURATION),
    "covers": ("What one approval is good for.", _one_of(Covers)),
    "for": ("For how long it is.", {"anyOf": [_DURATION, {"enum": ["once"]}]}),
}
MERGE: Final = {key: APPROVAL[key] for key in MERGE_KEYS}
_MATCH: Final[dict[str, tuple[str, Schema]]] = {
    "to": ("Names, patterns, addresses, CIDRs.", _TARGETS),
    "ports": ("Ports with what is spoken there: `443`, `80`, `5432/tcp`, `8000-8100/tls`.", _one_or_more(_PORTS)),
    "resolves_to": ("Addresses and CIDRs that the name may have.", _TARGETS),
    "for": ("For which tasks.", _ref("for")),
    "http": ("Which requests.", _ref("http")),
    "git": ("Which repositories and refs.", _ref("git")),
    "credential": ("The secret whose placeholder is the request's one credential.", _SLUG),
    "when": ("Only for a task that has read what nobody vouches for.", {"enum": ["tainted"]}),
}
EXCEPT: Final = _MATCH
RULE: Final[dict[str, tuple[str, Schema]]] = {
    **_MATCH,
    "id": ("What the rule is cited by.", _SLUG),
    "to": (
        "Names, patterns, addresses, CIDRs, lists. `*` is every name, `**.a.example` a name and all below it.",
        _one_or_more({"anyOf": [_WORD, _ref("list")]}),
    ),
    "action": ("What happens: `flag` goes out and is reviewed, `ask` waits for approval.", _one_of(Verdict)),
    "why": ("A sentence that refusals, explanations and reviews show.", _TEXT),
    "default": ("Counts only where no other rule matches.", _FLAG),
    "except": ("What the rule doesn't cover.", _one_or_more({"anyOf": [_WORD, _ref("except")]})),
    "mode": ("Of a default rule, instead of the settings'.", _one_of(Mode)),
    "tls": ("`splice` passes connections on unread.", _one_of(TlsMode)),
    "ca": ("A file of certificates, trusted for this destination.", _TEXT),
    "dns_types": ("Types of records that are answered for the name.", _one_or_more({"enum": list(RECORD_TYPES)})),
    "idle_timeout": ("How long a connection may be silent, up to 7d.", _DURATION),
    "until": ("The last day (UTC) on which it lets out or asks.", _DAY),
    "limits": ("How much it lets out.", _ref("limits")),
    "approval": ("Who approves, and what that is good for.", _ref("approval")),
    "trust": ("Whether what is read there may steer the task.", _one_of(Trust)),
    "scan": ("What is done where a secret is found in what leaves.", _one_of(Scan)),
    "log": ("What is told of a request's path.", _one_of(Log)),
}
TEST: Final[dict[str, tuple[str, Schema]]] = {
    "attempt": ("`METHOD URL`, `tcp HOST:PORT`, `git push URL REF`, `git fetch URL`, `dns TYPE NAME`.", _TEXT),
    "expect": ("The verdict that must come out.", _one_of(Verdict)),
    "rule": ("The id of a rule that must be among those that decide.", _TEXT),
    "task": ("The task that tries it.", _WORD),
    "labels": ("The labels that the task carries.", {"type": "object", "additionalProperties": _WORD}),
    "at": ("The day on which it is tried.", _DAY),
    "headers": ("Header fields of the request.", {"type": "object", "additionalProperties": _WORD}),
    "body": ("Whether the request has a body.", _FLAG),
    "credential": ("The secret whose placeholder is the request's one credential.", _SLUG),
    "tainted": ("Whether the task has read what nobody vouches for.", _FLAG),
}
_VARIABLE: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"}
_CERTIFICATE: Final = "client_certificate"  # which alone has no placeholder
SECRET: Final[dict[str, tuple[str, Schema]]] = {
    "id": ("What the secret is called by: `credential`.", _SLUG),
    "from": ("Where its value is read from when a task starts.", _ref("from")),
    "as": ("The variable that the task finds a placeholder in; with `in: aws` how three of them begin.", _VARIABLE),
    "hosts": ("Names of servers that the value is sent to, with a port unless it is 443.", _one_or_more(_TEXT)),
    "in": (
        "Where in a request: a header, the password of `basic`, a parameter; `aws` and `client_certificate`: nowhere.",
        _one_or_more({"anyOf": [{"enum": list(IN_WORDS)}, _ref("in")]}),
    ),
    "not_sent_to": (
        "Names of servers that clients send the placeholder to, too; it is blocked there, and no tampering.",
        _one_or_more(_TEXT),
    ),
    "prefix": ("How the value begins, if anybody may know; placeholders begin so too.", _TEXT),
}
FROM: Final[dict[str, tuple[str, Schema]]] = {
    "env": ("A variable of whoever runs Exeat; with `in: aws` how its three variables begin.", _VARIABLE),
    "file": ("A file that is nobody else's to read.", _PATH),
    "command": (
        "A program and its arguments; what it writes is the value.",
        {"type": "array", "items": _WORD, "minItems": 1},
    ),
    "systemd": ("The name of a credential that systemd passed on.", _TEXT),
    "keyring": (
        "Attributes of an item in the desktop's keyring.",
        {"type": "object", "additionalProperties": _WORD, "minProperties": 1},
    ),
}
IN: Final[dict[str, tuple[str, Schema]]] = {
    "header": ("A header field: the value alone, or after one word as in `Bearer`.", _TEXT),
    "query": ("A parameter of the query.", _TEXT),
    "form": ("A field of a form that is posted, application/x-www-form-urlencoded.", _TEXT),
}
_PLACE: Final[Schema] = {"type": "string", "pattern": "^(/|~$|~/)[^*]*$"}
_PLACES: Final[Schema] = {"anyOf": [_PLACE, {"type": "array", "items": _PLACE}]}
_GLOB: Final[Schema] = {"type": "string", "pattern": "^[^/~]"}
_HIDDEN: Final[Schema] = {"anyOf": [_PLACE, {"type": "string", "pattern": "^\\*\\*/."}]}
SANDBOX: Final[dict[str, tuple[str, Schema]]] = {
    "read": ("Files and directories that are shown read-only beside the system's.", _PLACES),
    "write": ("Files and directories that the task may write beside its workspace.", _PLACES),
    "hide": (
        "What is hidden beside the places of credentials: paths, and `**/NAME` wherever it lies.",
        {"anyOf": [_HIDDEN, {"type": "array", "items": _HIDDEN}]},
    ),
    "workspace": ("`review` keeps what the task changes apart until it is accepted.", _one_of(WorkspaceMode)),
    "protected": (
        "Files of the workspace, as globs, that need an approval to be changed.",
        {"anyOf": [_GLOB, {"type": "array", "items": _GLOB}]},
    ),
    "approval": (
        "Who approves that protected files are merged, in review; without it, whoever accepts them.",
        _ref("merge_approval"),
    ),
    "caches": (
        "What is kept between tasks: a name, and where it lies in the sandbox.",
        {"type": "object", "additionalProperties": {"type": "string", "pattern": "^(~|/var/cache|/var/lib)/."}},
    ),
    "devices": (
        "Device nodes that the task may use, by their names below /dev: `kvm`, `gpu`, or one node of a card.",
        {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    ),
    "environment": ("Which variables the task has.", _ref("environment")),
    "user": ("Who the task sees itself as; it has no rights either way.", _one_of(BoxUser)),
    "hostname": (
        "What the task's host is called.",
        {"type": "string", "pattern": "^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$"},
    ),
    "timeout": ("How long the task may run.", _DURATION),
    "limits": ("How much of the machine the task may use.", _ref("resources")),
}
ENVIRONMENT: Final[dict[str, tuple[str, Schema]]] = {
    "keep": (
        "Variables of the caller that the task has too.",
        {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    ),
    "set": ("Variables with their values.", {"type": "object", "additionalProperties": _WORD}),
}
RESOURCE: Final[dict[str, tuple[str, Schema]]] = {
    "memory": ("Memory of all its processes together.", _SIZE),
    "cpu": ("Cores, as in `2` or `0.5`.", {"type": ["number", "string"]}),
    "processes": ("How many processes and threads.", _COUNT),
    "files": ("How many files a process may have open.", _COUNT),
    "disk": ("How much it may write outside of its workspace, or change in one that is reviewed.", _SIZE),
}
COMMAND: Final[dict[str, tuple[str, Schema]]] = {
    "id": ("What the command is cited by.", _SLUG),
    "run": ("A program's name or path and globs of its arguments, as in `terraform apply*`.", _TEXT),
    "action": (
        "What happens: `ask` waits for approval, `flag` runs and is reviewed.",
        {"enum": ["deny", "ask", "flag"]},
    ),
    "why": ("A sentence that refusals and reviews show.", _TEXT),
    "for": ("For which tasks.", _ref("for")),
    "approval": ("Who approves an `ask`, and what that is good for.", _ref("approval")),
}
LIST: Final[dict[str, tuple[str, Schema]]] = {
    "list": ("A file of names: a hosts file, or a name a line; they and all names below them.", _TEXT),
}


def rule_file_schema() -> Schema:
    """Make the schema of rule files."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": ADDRESS,
        "title": "Exeat rule file",
        **_object(FILE_KEYS, FILE, "version"),
        "definitions": {
            "include": {
                **_object(INCLUDE_KEYS, INCLUDE),
                "oneOf": [{"required": ["file"]}, {"required": ["preset"]}],
            },
            "settings": _object(SETTINGS_KEYS, SETTINGS),
            "rule": _object(RULE_KEYS, RULE, "id", "to", "action"),
            "except": {**_object(EXCEPT_KEYS, EXCEPT), "minProperties": 1},
            "list": _object(("list",), LIST, "list"),
            "http": {**_object(HTTP_KEYS, HTTP), "minProperties": 1},
            "git": _object(GIT_KEYS, GIT, "repos"),
            "for": {**_object(FOR_KEYS, FOR), "minProperties": 1},
            "limits": {**_object(LIMITS_KEYS, LIMITS), "minProperties": 1},
            "approval": {**_object(APPROVAL_KEYS, APPROVAL), "minProperties": 1},
            "test": _object(TEST_KEYS, TEST, "attempt", "expect"),
            "sandbox": _object(SANDBOX_KEYS, SANDBOX),
            "merge_approval": {**_object(MERGE_KEYS, MERGE), "minProperties": 1},
            "environment": _object(ENVIRONMENT_KEYS, ENVIRONMENT),
            "resources": {**_object(RESOURCE_KEYS, RESOURCE), "minProperties": 1},
            "command": _object(COMMAND_KEYS, COMMAND, "id", "run", "action"),
            "secret": {
                **_object(SECRET_KEYS, SECRET, "id", "from", "hosts", "in"),
                "anyOf": [{"required": ["as"]}, {"properties": {"in": {"enum": [_CERTIFICATE, [_CERTIFICATE]]}}}],
            },
            "from": {**_object(FROM_KEYS, FROM), "minProperties": 1, "maxProperties": 1},
            "in": {**_object(IN_KEYS, IN), "minProperties": 1, "maxProperties": 1},
        },
    }


def _object(keys: Iterable[str], described: Mapping[str, tuple[str, Schema]], *required: str) -> Schema:
    """Make an object of a table of keys: those, and no others."""
    properties: Schema = {}
    for key in keys:
        says, schema = described[key]
        # Beside a `$ref` draft-07 passes over everything.
        properties[key] = {"description": says, **({"allOf": [schema]} if "$ref" in schema else schema)}
    found: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**found, "required": list(required)} if required else found
