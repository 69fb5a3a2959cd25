"""`secrets`: accepted values, errors, and their effect on decisions."""

import pytest

from rules.attempt import Attempt, Protocol
from rules.loading.cases import parse_attempt
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from tests.rules.rule_texts import loaded, policy, problems

GOOD = "{id: key, from: {env: KEY}, as: API_KEY, hosts: x.example, in: {header: Authorization}}"
BASIC, BEARER = Slot(SlotKind.BASIC), Slot(SlotKind.HEADER, "authorization")
X = HostName("x.example"), 443


def file(*secrets, rules="[]", more=""):
    said = "".join(f"\n  - {secret}" for secret in secrets)
    return f"version: 1\nname: t\nsecrets:{said}\nrules: {rules}\n{more}\n"


READ = [
    (GOOD, Secret("key", Source(SourceKind.ENV, ("KEY",)), "API_KEY", (X,), (BEARER,))),
    (
        GOOD.replace("x.example,", "[y.example, 'X.Example.:8443'],"),
        Secret(
            "key", Source(SourceKind.ENV, ("KEY",)), "API_KEY",
            ((HostName("x.example"), 8443), (HostName("y.example"), 443)), (BEARER,),
        ),
    ),
    (
        GOOD.replace("{env: KEY}", "{command: [/usr/bin/pass, show, key]}"),
        Secret("key", Source(SourceKind.COMMAND, ("/usr/bin/pass", "show", "key")), "API_KEY", (X,), (BEARER,)),
    ),
    (
        GOOD.replace("{env: KEY}", "{file: /etc/key}").replace("{header: Authorization}", "[{query: k}, basic]"),
        Secret("key", Source(SourceKind.FILE, ("/etc/key",)), "API_KEY", (X,), (BASIC, Slot(SlotKind.QUERY, "k"))),
    ),
    (
        GOOD.replace("{env: KEY}", "{keyring: {service: exeat, account: me@x}}"),
        Secret(
            "key", Source(SourceKind.KEYRING, ("account", "me@x", "service", "exeat")), "API_KEY", (X,), (BEARER,)
        ),
    ),
    (
        GOOD.replace("{header: Authorization}", "aws"),
        Secret("key", Source(SourceKind.ENV, ("KEY",)), "API_KEY", (X,), (Slot(SlotKind.AWS),)),
    ),
    (
        GOOD.replace("{env: KEY}", "{systemd: my.key}").replace("}}", "}, prefix: sk-}"),
        Secret("key", Source(SourceKind.SYSTEMD, ("my.key",)), "API_KEY", (X,), (BEARER,), "sk-"),
    ),
    (
        GOOD.replace("as: API_KEY, ", "").replace("{header: Authorization}", "client_certificate"),
        Secret("key", Source(SourceKind.ENV, ("KEY",)), "", (X,), (Slot(SlotKind.CLIENT_CERTIFICATE),)),
    ),
    (
        GOOD.replace("API_KEY", "API_KEY, not_sent_to: ['y.example:8443', y.example]"),
        Secret(
            "key", Source(SourceKind.ENV, ("KEY",)), "API_KEY", (X,), (BEARER,), "",
            ((HostName("y.example"), 443), (HostName("y.example"), 8443)),
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), READ)
def test_secret_is_parsed(said, meant):
    assert loaded(file(said)).policy.secrets == (meant,)


# what is written instead of a part of a good one, and what is said of it
WRONG = [
    ("id: key", "id: Key", "lower-case letters"),
    ("{env: KEY}", "{env: KEY, file: /a}", "`from` says one place"),
    ("{env: KEY}", "{}", "`from` says one place"),
    ("{env: KEY}", "{vault: KEY}", "`vault` is not a key of `from`"),
    ("{env: KEY}", "KEY", "`from` must be a mapping"),
    ("{env: KEY}", "{env: A-B}", "not the name of a variable"),
    ("{env: KEY}", "{file: key}", "must be a whole path"),
    ("{env: KEY}", "{command: /bin/cat key}", "`command` is a list"),
    ("{env: KEY}", "{command: []}", "`command` is empty"),
    ("{env: KEY}", "{command: [pass, show]}", "`pass` must be a whole path"),
    ("{env: KEY}", "{systemd: ../key}", "not the name of a credential"),
    ("{env: KEY}", "{keyring: model}", "`keyring` is a mapping"),
    ("{env: KEY}", "{keyring: {}}", "`keyring` is a mapping"),
    ("{env: KEY}", "{keyring: {--unlock: a}}", "not the name of an attribute"),
    ("{env: KEY}", "{keyring: {service: --help}}", "doesn't begin with `-`"),
    ("as: API_KEY", "as: 'API KEY'", "not the name of a variable"),
    ("as: API_KEY, ", "", "a secret needs `as`"),
    ("x.example", "'*.x.example'", "is a pattern"),
    ("x.example", "'**'", "is a pattern"),
    ("x.example", "10.0.0.1", "is an address"),
    ("x.example", "'[::1]:443'", "a name and a port"),
    ("x.example", "'x.example:0'", "a name and a port"),
    ("x.example", "'x.example:70000'", "a name and a port"),
    ("x.example", "[]", "`hosts` is empty"),
    ("x.example", "'https://x.example'", "a name and a port"),
    ("{header: Authorization}", "header", "is not a place in a request"),
    ("{header: Authorization}", "{header: a, query: b}", "each place of `in` is one"),
    ("{header: Authorization}", "{cookie: a}", "`cookie` is not a key of `in`"),
    ("{header: Authorization}", "{header: Cookie}", "can't carry a secret"),
    ("{header: Authorization}", "{header: User-Agent}", "can't carry a secret"),
    ("{header: Authorization}", "{header: Host}", "is set by the gate"),
    ("{header: Authorization}", "{header: 'a b'}", "not the name of a header"),
    ("{header: Authorization}", "{query: 'a[]'}", "must be letters, digits"),
    ("{header: Authorization}", "{form: 'a b'}", "must be letters, digits"),
    ("{header: Authorization}", "[]", "`in` is empty"),
    ("{header: Authorization}", "[aws, basic]", "`aws` stands alone"),
    ("{header: Authorization}}", "aws, prefix: AKIA}", "`prefix` is for values that are sent"),
    ("API_KEY", "API_KEY, prefix: 'a b'", "must be at most 32 letters"),
    ("API_KEY", "PATH", "`as: PATH`: that variable is the sandbox's own; give the placeholder another"),
    ("API_KEY", "LC_ALL", "`as: LC_ALL`: that variable is the sandbox's own"),
    ("API_KEY", "NODE_EXTRA_CA_CERTS", "that variable is the sandbox's own"),
    ("API_KEY", "JAVA_TOOL_OPTIONS", "that variable is the sandbox's own"),
    ("{header: Authorization}", "client_certificate", "`as` is for what a task has a placeholder of"),
    ("{header: Authorization}", "[client_certificate, basic]", "`client_certificate` stands alone"),
    ("API_KEY", "API_KEY, not_sent_to: '*.y.example'", "is a pattern"),
    ("API_KEY", "API_KEY, not_sent_to: []", "`not_sent_to` is empty"),
    ("API_KEY", "API_KEY, not_sent_to: 'x.example:443'", "`x.example` is also in its `hosts`"),
    ("API_KEY", "API_KEY, value: sk-1234", "`value` is not a key of a secret"),
]


@pytest.mark.parametrize("rule", ["credential: key", "credential: other, except: {credential: key}"])
def test_request_rule_with_a_client_certificate_is_refused(rule):
    """No request carries it: an allow would match none, and a deny hold nothing back."""
    said = GOOD.replace("as: API_KEY, ", "").replace("{header: Authorization}", "client_certificate")
    other = "{id: other, from: {env: OTHER}, as: OTHER, hosts: x.example, in: basic}"
    found = problems(file(said, other, rules=f"[{{id: r, to: x.example, action: deny, {rule}}}]"))
    assert any("names a client certificate, which no request carries" in each for each in found), found


@pytest.mark.parametrize(("part", "wrong", "message"), WRONG)
def test_malformed_secret_is_an_error(part, wrong, message):
    assert part in GOOD
    found = problems(file(GOOD.replace(part, wrong)))
    assert len(found) == 1
    assert message in found[0]


TOGETHER = [
    (file(GOOD, GOOD.replace("API_KEY", "B")), "a secret `key` exists already"),
    (file(GOOD, GOOD.replace("id: key", "id: b")), "placeholder in `API_KEY` already"),
    (file(GOOD.replace("API_KEY", "A_SESSION_TOKEN"), GOOD.replace("id: key", "id: b").replace("API_KEY", "A").replace("{header: Authorization}", "aws")),
     "placeholder in `A_SESSION_TOKEN` already"),
    (file(GOOD, rules="[{id: a, to: x.example, credential: keys, action: allow}]"), "no secret `keys`; did you mean `key`?"),
    (file(GOOD, rules="[{id: a, to: x.example, except: [{credential: other}], action: deny}]"), "no secret `other`"),
    ("version: 1\nrules: [{id: a, to: x.example, credential: key, action: deny}]", "no secret `key`: `secrets` say"),
    (file(GOOD, more="tests: [{attempt: 'GET https://x.example/', credential: k, expect: deny}]"), "no secret `k`"),
    (file(GOOD, more="tests: [{attempt: 'tcp x.example:22', credential: key, expect: deny}]"), "is for requests"),
    (file(*(GOOD.replace("key,", f"k{n},").replace("API_KEY", f"K{n}") for n in range(65))), "more than 64 secrets"),
    ("version: 1\nsecrets: {}", "`secrets` must be a list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), TOGETHER)
def test_conflicting_secrets_are_an_error(text, message):
    found = problems(text)
    assert len(found) == 1
    assert message in found[0]


def test_secrets_in_an_included_file_are_refused(tmp_path):
    from rules.loading.load import read
    from rules.problems import RuleFileError

    (tmp_path / "other.yaml").write_text(file(GOOD).replace("name: t", "name: o"))
    (tmp_path / "t.yaml").write_text("version: 1\ninclude: [{file: other.yaml}]\nrules: []\n")
    with pytest.raises(RuleFileError, match=r"other\.yaml:4:5: an included file may not have `secrets`"):
        read([tmp_path / "t.yaml"])


CHANGED = [("id: key", "id: keys"), ("{env: KEY}", "{env: OTHER}"), ("API_KEY", "OTHER"), ("x.example", "y.example")]
CHANGED += [
    ("x.example", "'x.example:8443'"),
    ("{header: Authorization}", "basic"),
    ("{header: Authorization}", "aws"),
    ("API_KEY", "API_KEY, prefix: sk-"),
]


def test_revision_covers_every_key_but_not_the_order():
    revisions = {loaded(file(GOOD.replace(*change))).policy.revision for change in CHANGED}
    revisions |= {loaded(file(GOOD)).policy.revision, loaded("version: 1\nname: t").policy.revision}
    assert len(revisions) == len(CHANGED) + 2
    other = GOOD.replace("key,", "b,").replace("API_KEY", "B")
    assert loaded(file(GOOD, other)).policy.revision == loaded(file(other, GOOD)).policy.revision


def test_denial_without_credential_names_the_rule():
    """Rules about other paths or methods of that host are further away."""
    rules = (
        "[{id: a, to: x.example, credential: key, http: {paths: /a}, action: allow},"
        " {id: b, to: x.example, credential: key, http: {paths: /b}, action: allow},"
        " {id: c, to: x.example, credential: key, http: {paths: /b, methods: PUT}, action: allow}]"
    )
    decision = parse_attempt("GET https://x.example/b").decide(policy(file(GOOD, rules=rules)))
    assert (decision.nearest.rule, decision.nearest.field, decision.nearest.wanted) == ("t:b", "credential", "key")


SPLICED = "[{id: a, to: '*.example', tls: splice, ports: [443, 8443/tls], action: allow}]"


@pytest.mark.parametrize(("host", "port", "inspected"), [("x.example", 443, True), ("x.example", 8443, False), ("y.example", 443, False)])  # fmt: skip
def test_hosts_of_a_secret_are_never_spliced(host, port, inspected):
    asked = policy(file(GOOD, rules=SPLICED))
    assert asked.needs.inspection
    assert asked.decide(Attempt(Protocol.TLS, HostName(host), port)).inspect is inspected
