"""`exeat explain --suggest EVENT`: the rule that would have allowed what was blocked."""

import json

import pytest

from enforcer.cli import explain, perform
from enforcer.cli.parsing import Parser
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind
from rules.attempt import Protocol
from rules.loading.load import failures
from rules.verdicts import Outcome, Reason
from tests.proxy.telemetry.replay.test_replay import DENIED, MAIN, PASSED, connection, lookup, push, refused, request
from tests.rules.rule_texts import loaded

ID = "01a1fbac-5503-7e75-bce9-8bc86d516a2a"
RULES = "version: 1\nname: web\nrules:\n- {id: no, to: denied.example, action: deny}\n- {id: q, to: asked.example, action: ask}\n"


@pytest.fixture
def suggest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    day = tmp_path / "journal" / "2026-11-21"
    day.mkdir(parents=True)
    (tmp_path / "web.yaml").write_text(RULES)

    def run(event, *words, given=ID[-12:], rules="web.yaml"):
        (day / "0001.jsonl").write_bytes(encode(event._replace(id=ID, time=1_795_223_737_603_903_692)))
        words = ["--suggest", given, "--journal", "journal", *words, *(["--rules", rules] if rules else [])]
        arguments = Parser.of("explain", explain.ARGUMENTS).parse_args(words)
        code = perform(lambda given: explain.run(given, tmp_path / "no-system"), arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


TCP = {"port": 22, "protocol": Protocol.TCP}
SUGGESTED = [
    (request(DENIED, "GET", "/a"), ['to: "x.example"', 'methods: ["GET"]', '- "/a"']),
    (request(DENIED, "GET", "/a", websocket=True), ["websocket: true"]),
    (request(DENIED, "POST", "/a", body=True), ['methods: ["POST"]']),
    (request(refused(Reason.BODY_NOT_ALLOWED), "GET", "/a", body=True), ["body: true"]),
    (request(refused(Reason.NON_PUBLIC_ADDRESS), "GET", "/a", address="10.1.2.3"), ['resolves_to: ["10.1.2.3"]']),
    (request(refused(Reason.ADDRESS_NOT_LISTED), "GET", "/a", address="10.1.2.3"), ['resolves_to: ["10.1.2.3"]']),
    (
        push(MAIN)._replace(outcome=Outcome.BLOCKED, reason=Reason.NO_RULE),
        ['repos: ["acme/web"]', 'push: ["refs/heads/main"]', "changes: [update]"],
    ),
    (connection(DENIED, **TCP), ['ports: "22/tcp"']),
    (connection(DENIED), ['methods: ["GET", "HEAD"]']),
    (connection(refused(Reason.UDP), port=123, protocol=Protocol.UDP), ['ports: "123/udp"']),
    (lookup(refused(Reason.DNS_DENIED)), ['ports: "443/tls"', 'methods: ["GET", "HEAD"]']),
]


@pytest.mark.parametrize(("event", "output"), SUGGESTED)
def test_suggested_rule_loads_and_allows_the_attempt(suggest, event, output):
    code, out, err = suggest(event)
    assert (code, [line for line in err.splitlines() if "check:" not in line]) == (0, [])
    for part in output:
        assert part in out
    assert f"# Event {ID}." in out
    file = loaded(out)
    assert failures(file) == []
    assert len(file.policy.rules) == 1


NOT_RECORDED = "Which address the name has was not recorded"


@pytest.mark.parametrize(
    ("event", "is_warned"),
    [
        (connection(DENIED), True),
        (lookup(refused(Reason.DNS_DENIED)), True),
        (connection(DENIED, None, address="1.2.3.4"), False),
        (connection(refused(Reason.NON_PUBLIC_ADDRESS), address="10.1.2.3"), False),
    ],
)
def test_suggestion_for_a_name_warns_of_an_unknown_address(suggest, event, is_warned):
    """A rule without `resolves_to` is not enough for a name inside, and the journal doesn't say which it is."""
    assert (NOT_RECORDED in suggest(event)[1]) is is_warned


def test_second_suggestion_is_tried_together_with_the_first(suggest, tmp_path):
    """Two files may not have one name."""
    _, first, _ = suggest(request(DENIED, "GET", "/a"))
    (tmp_path / "first.yaml").write_text(first.replace(ID[-12:], "0" * 12))
    code, out, err = suggest(request(DENIED, "GET", "/b"), rules="first.yaml")
    assert (code, err, f"name: suggested-{ID[-12:]}" in out) == (0, "", True)


NONE = [
    (request(PASSED, "GET", "/a"), "it was not blocked"),
    (request(refused(Reason.RULE), "GET", "/a", rules=("web:no",)), "`web:no` denies it; put it into that rule's `except`"),
    (request(refused(Reason.APPROVAL_TIMEOUT), "GET", "/a"), "people are asked about it: `exeat approve ID --as-rule`"),
    (connection(refused(Reason.NAME_MISMATCH)), "the names in DNS, TLS and HTTP differ"),
    (connection(refused(Reason.LIMIT_EXCEEDED)), "a limit of the rules or of the gate is reached; raise the rule's `limits`; a limit for the lifetime of a task needs a new task (`limit_exceeded`)"),
    (request(refused(Reason.SECRET_NOT_SENT), "GET", "/a"), "list the host in the secret's `hosts`"),
    (request(refused(Reason.SECRET_MISUSE), "GET", "/a"), "send it to the secret's `hosts`"),
    (request(refused(Reason.CREDENTIAL_MISMATCH), "GET", "/a"), "send the placeholder of the rule's `credential`"),
    (request(refused(Reason.LEAK), "GET", "/a"), "remove it from the request"),
    (request(refused(Reason.LEAK), "GET", "/a")._replace(kind=Kind.SECRET_DETECTED), "remove it from the request"),
    (request(refused(Reason.LEAK), "GET", "/a")._replace(kind=Kind.REQUEST_COMPLETED), "remove it from the request"),
    (connection(refused(Reason.SECRET_MISUSE))._replace(kind=Kind.TAMPERING_DETECTED, outcome=None), "send it to the secret's `hosts`"),
    (request(refused(Reason.PROTOCOL_MISMATCH), "", "")._replace(http=None), "or set `tls: splice` where TLS carries no HTTP"),
    (request(refused(Reason.PROTOCOL_MISMATCH), "", "")._replace(http=None, detail="it is LDAP"), "it is LDAP; "),
    (request(refused(Reason.AMBIGUOUS_REQUEST), "GET", "/a")._replace(detail="a line is folded\x1b"), "a line is folded\\x1b"),
    (connection(refused(Reason.NON_PUBLIC_ADDRESS), None, address="127.0.0.1"), "no rule can open 127.0.0.1"),
    (connection(DENIED)._replace(kind=Kind.TASK_STARTED), "it is about no attempt"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "why"), NONE)
def test_attempt_that_no_rule_can_allow_names_the_remedy(suggest, event, why):
    code, out, err = suggest(event)
    assert (code, out) == (1, "")
    assert why in err


def test_suggestion_names_another_rule_that_still_denies(suggest):
    """The rules may be others by now."""
    code, out, err = suggest(request(DENIED, "GET", "/a", "denied.example"))
    assert code == 1
    assert 'to: "denied.example"' in out
    assert "it is not enough: with it, this would be deny by `web:no` (rule)" in err


def test_suggestion_passes_check_and_is_tried_without_rules(suggest):
    code, out, err = suggest(connection(DENIED, **TCP), rules=None)
    assert (code, "exeat: check: suggested.yaml:" in err, "EX031" in err) == (0, True, True)
    code, out, _ = suggest(connection(DENIED, **TCP), "--format", "json")
    value = json.loads(out)
    assert (value["event"], value["allowed"]) == (ID, True)
    assert any("EX031" in finding for finding in value["findings"])


def test_suggestion_never_prints_a_secret(suggest):
    code, out, err = suggest(request(DENIED, "GET", "/a/ghp_0123456789abcdefghijABCDEFGHIJ012345"))
    assert (code, "ghp_" in out + err) == (1, False)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("x", "`x` is no event's id"),
        ("0123456789ab", "there is no such event"),
        ("\x1b[2J", "`\\x1b[2J` is no event's id"),
    ],
)
def test_misuse_exits_2_with_a_message(suggest, given, says):
    code, out, err = suggest(request(DENIED, "GET", "/a"), given=given)
    assert (code, out) == (2, "")
    assert says in err
    code, _, err = suggest(request(DENIED, "GET", "/a"), "GET", "https://x.example/")
    assert (code, "takes the id of an event and no attempt" in err) == (2, True)
