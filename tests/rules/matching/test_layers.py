"""Files that vote alone: root's, and ceilings; with what each may say of settings."""

import pytest

from rules.attempt import Caller
from rules.explain.explanation import explain
from rules.loading.cases import parse_attempt
from rules.loading.load import read
from rules.problems import RuleFileError
from rules.values.addresses import parse_address
from rules.values.names import HostName
from rules.verdicts import Mode, Outcome, Reason
from tests.rules.rule_texts import told

X = "GET https://x.example/"
ALLOW = "{id: a, to: x.example, action: allow}"
FLAG = "{id: f, to: x.example, action: flag}"
DENY = "{id: d, to: x.example, action: deny}"
ASK = "{id: q, to: x.example, action: ask}"
REST_DENY = "{id: rest, to: '*', default: true, action: deny}"
REST_ASK = "{id: rest, to: '*', default: true, action: ask}"
REST_FLAG = "{id: rest, to: '*', default: true, action: flag}"
REST_ALLOW = "{id: rest, to: '*', default: true, action: allow}"


def file(name, rules=(), layer="", settings="", include=""):
    said = [f"version: 1\nname: {name}"]
    said += [f"layer: {layer}"] if layer else []
    said += [f"settings: {settings}"] if settings else []
    said += [f"include: {include}"] if include else []
    return "\n".join([*said, "rules:" if rules else "rules: []", *(f"- {rule}" for rule in rules), ""])


def written(directory, *texts):
    paths = []
    for number, text in enumerate(texts):
        path = directory / f"{number}.yaml"
        path.write_text(text)
        paths.append(path)
    return paths


ROWS = [
    # what the user's file says, the layer and what it says, what is decided
    ([ALLOW], "mandatory", [], "allow rule u:a"),  # silence is no vote
    ([ALLOW], "mandatory", [DENY], "deny rule l:d"),
    ([ALLOW], "mandatory", [ASK], "ask approval_unavailable l:q"),
    ([ALLOW], "mandatory", [FLAG], "flag rule l:f"),
    ([DENY], "mandatory", [ALLOW], "deny rule u:d"),
    ([], "mandatory", [ALLOW], "allow rule l:a"),  # its rules are in the pool as well
    ([], "mandatory", [], "deny no_rule"),
    # its defaults count, whatever rules others have
    ([ALLOW], "mandatory", [REST_DENY], "deny layer l:rest"),
    ([ALLOW], "mandatory", [REST_ASK], "ask approval_unavailable l:rest"),
    ([ALLOW], "mandatory", [REST_FLAG], "flag layer l:rest"),
    ([ALLOW], "mandatory", [REST_ALLOW], "allow rule u:a"),
    ([ALLOW], "mandatory", [REST_DENY, ALLOW], "allow rule l:a,u:a"),
    ([FLAG], "mandatory", [REST_DENY, ALLOW], "flag rule u:f"),
    ([REST_ALLOW.replace("rest", "r")], "mandatory", [REST_DENY], "deny default_rule l:rest"),
    ([], "mandatory", [REST_ASK], "ask approval_unavailable l:rest"),
    # a ceiling's silence denies
    ([ALLOW], "ceiling", [], "deny layer"),
    ([ALLOW], "ceiling", [ALLOW], "allow rule l:a,u:a"),
    ([ALLOW], "ceiling", [FLAG], "flag rule l:f"),
    ([ALLOW], "ceiling", [ASK], "ask approval_unavailable l:q"),
    ([ALLOW], "ceiling", [REST_ALLOW], "allow rule u:a"),
    ([ALLOW], "ceiling", [REST_FLAG], "flag layer l:rest"),
    ([ALLOW], "ceiling", ["{id: y, to: y.example, action: allow}"], "deny layer"),
    ([ASK], "ceiling", [], "deny layer"),
    ([DENY], "ceiling", [ALLOW], "deny rule u:d"),
    ([], "ceiling", [ALLOW], "allow rule l:a"),
    ([ALLOW], "ceiling", ["{id: p, to: x.example, http: {methods: PUT}, action: allow}"], "deny layer"),
    ([ALLOW], "ceiling", ["{id: g, to: x.example, http: {methods: GET}, action: allow}"], "allow rule l:g,u:a"),
]  # fmt: skip


@pytest.mark.parametrize(("user", "kind", "layer", "expected"), ROWS)
def test_layer_is_evaluated_alone(user, kind, layer, expected, tmp_path):
    paths = written(tmp_path, file("u", user), file("l", layer, kind))
    for order in (paths, paths[::-1]):
        asked = read(order).policy
        assert told(parse_attempt(X).decide(asked)) == expected
        assert [(each.name, each.kind) for each in asked.layers] == [("l", kind)]


def test_connection_is_allowed_for_what_a_mandatory_deny_leaves(tmp_path):
    deny = "{id: d, to: x.example, action: deny, except: [{http: {methods: POST}}]}"
    asked = read(written(tmp_path, file("u", [ALLOW]), file("l", [deny], "mandatory"))).policy
    said = {attempt: told(parse_attempt(attempt).decide(asked)) for attempt in ("tls x.example:443", X, f"POST{X[3:]}")}
    assert list(said.values()) == ["allow rule u:a", "deny rule l:d", "allow rule u:a"]


OBJECTING = [
    ([ALLOW], "ceiling", [], ["`l` (ceiling) has no rule that allows it, and rules of other files cannot override that"]),
    ([ALLOW], "mandatory", [REST_DENY], ["`l` (mandatory) has no rule that allows it, and rules of other files cannot override that"]),
    ([ALLOW], "ceiling", [ALLOW], []),
    ([], "mandatory", [], []),
]  # fmt: skip


@pytest.mark.parametrize(("user", "kind", "layer", "expected"), OBJECTING)
def test_denial_names_its_layer(user, kind, layer, expected, tmp_path):
    asked = read(written(tmp_path, file("u", user), file("l", layer, kind))).policy
    explanation = explain(asked, parse_attempt(X))
    assert [line for line in explanation.lines() if "rules of other files" in line] == expected
    assert explanation.value()["layers"] == ["l"] * len(expected)


def test_denial_names_its_layer_among_several(tmp_path):
    paths = written(tmp_path, file("u", [ALLOW]), file("z", [ALLOW], "ceiling"), file("b", [], "ceiling"))
    asked = read(paths).policy
    assert explain(asked, parse_attempt(X)).value()["layers"] == ["b"]
    assert parse_attempt(X).decide(asked).why == "the layer `b` does not allow this itself"
    paths = written(tmp_path, file("u", [ALLOW]), file("z", [], "ceiling"), file("b", [ALLOW], "ceiling"))
    asked = read(paths).policy
    assert explain(asked, parse_attempt(X)).value()["layers"] == ["z"]
    assert parse_attempt(X).decide(asked).why == "the layer `z` does not allow this itself"


CONNECTIONS = [
    ([ALLOW], "mandatory", ["{id: d, to: x.example, http: {paths: /a}, action: deny}"], "allow rule u:a"),
    ([ALLOW], "mandatory", ["{id: d, to: x.example, http: {paths: /**}, action: deny}"], "deny rule l:d"),
    ([ALLOW], "mandatory", ["{id: f, to: x.example, http: {paths: /a}, action: flag}"], "allow rule u:a"),
    ([ALLOW], "ceiling", ["{id: g, to: x.example, http: {methods: GET}, action: allow}"], "allow rule l:g,u:a"),
    ([ALLOW], "ceiling", ["{id: g, to: x.example, http: {methods: GET}, action: flag}"], "flag rule l:g"),
    ([ALLOW], "ceiling", [], "deny layer"),
]  # fmt: skip


@pytest.mark.parametrize(("user", "kind", "layer", "expected"), CONNECTIONS)
def test_layer_is_evaluated_for_connections(user, kind, layer, expected, tmp_path):
    asked = read(written(tmp_path, file("u", user), file("l", layer, kind))).policy
    decision = parse_attempt("tls x.example:443").decide(asked)
    assert told(decision).split()[0] == expected.split()[0]
    if decision.passes:
        assert decision.inspect
    else:
        assert told(decision) == expected
    assert asked.decide_name(HostName("x.example")).passes is decision.passes


def test_roots_files_are_mandatory(tmp_path):
    user, root = written(tmp_path, file("u", [ALLOW]), file("root", [REST_DENY]))
    assert told(parse_attempt(X).decide(read([user, root]).policy)) == "allow rule u:a"
    for paths in ([user], [user, root], [root, user]):
        asked = read(paths, mandatory=[root]).policy
        assert told(parse_attempt(X).decide(asked)) == "deny layer root:rest"
    root.write_text(file("root", [], "ceiling"))
    assert told(parse_attempt(X).decide(read([user], mandatory=[root]).policy)) == "deny layer"


def test_include_removes_no_rule_of_roots_file(tmp_path):
    [root] = written(tmp_path, file("root", [DENY, ALLOW.replace("id: a", "id: b")]))
    user = tmp_path / "u.yaml"
    user.write_text(file("u", [ALLOW], include="[{file: 0.yaml, except: [d]}]"))
    with pytest.raises(RuleFileError, match="`root` is included already, with another `only`, `except` or"):
        read([user], mandatory=[root])
    user.write_text(file("u", [ALLOW], include="[{file: 0.yaml}]"))
    assert told(parse_attempt(X).decide(read([user], mandatory=[root]).policy)) == "deny rule root:d"


def test_included_files_belong_to_their_layer(tmp_path):
    (tmp_path / "base.yaml").write_text(file("base", [ALLOW]))
    layer, user = written(
        tmp_path,
        file("l", [], "ceiling", include="[{file: base.yaml}]"),
        file("u", ["{id: y, to: y.example, action: allow}"], include="[{file: base.yaml}]"),
    )
    for order in ([layer, user], [user, layer]):
        asked = read(order).policy
        assert told(parse_attempt(X).decide(asked)) == "allow rule base:a"
        assert told(parse_attempt("GET https://y.example/").decide(asked)) == "deny layer"


def test_two_layers_are_evaluated_separately(tmp_path):
    texts = [
        file("u", [ALLOW]),
        file("one", [REST_ASK], "mandatory"),
        file("two", [REST_DENY, ALLOW.replace("x.", "y.")], "mandatory"),
    ]
    assert told(parse_attempt(X).decide(read(written(tmp_path, *texts)).policy)) == "deny layer two:rest"
    texts[2] = file("two", [ALLOW.replace("id: a", "id: b")], "ceiling")
    assert told(parse_attempt(X).decide(read(written(tmp_path, *texts)).policy)) == "ask approval_unavailable one:rest"


def test_layer_decision_has_its_approval_terms(tmp_path):
    strict = (
        "{id: s, to: '*', default: true, idle_timeout: 5s, limits: {requests: 3}, until: 2027-01-31, action: allow}"
    )
    paths = written(
        tmp_path, file("u", ["{id: a, to: x.example, tls: splice, action: allow}"]), file("l", [strict], "ceiling")
    )
    from datetime import date

    decision = (
        parse_attempt("tls x.example:443")._replace(caller=Caller(at=date(2027, 1, 1))).decide(read(paths).policy)
    )
    assert told(decision) == "allow rule u:a"
    assert (decision.inspect, decision.idle_timeout) == (True, 5.0)
    assert [ident for ident, _ in decision.limits] == ["l:s"]
    assert decision.expires == date(2027, 1, 31)
    assert told(parse_attempt("tls x.example:443").decide(read(paths).policy)) == "deny expired l:s"


def test_ceiling_restricts_addresses(tmp_path):
    from rules.attempt import Attempt, Protocol
    from rules.values.addresses import parse_address

    ten = parse_address("10.0.0.1")
    local = "{id: a, to: x.example, resolves_to: 10.0.0.0/8, action: allow}"
    where = (Attempt(Protocol.TLS, HostName("x.example"), 443), ten)
    assert read(written(tmp_path, file("u", [local]))).policy.check_address(*where) is None
    assert (
        read(written(tmp_path, file("u", [local]), file("l", [ALLOW], "ceiling"))).policy.check_address(*where)
        == "non_public_address"
    )
    assert (
        read(written(tmp_path, file("u", [local]), file("l", [ALLOW], "mandatory"))).policy.check_address(*where)
        is None
    )
    assert (
        read(written(tmp_path, file("u", [local]), file("l", [local], "ceiling"))).policy.check_address(*where) is None
    )


def test_ceiling_must_list_dns_records(tmp_path):
    listing = "{id: a, to: x.example, dns_types: [TXT, MX], action: allow}"
    asked = read(written(tmp_path, file("u", [listing]), file("l", [listing.replace(", MX", "")], "ceiling"))).policy
    assert asked.dns_types(HostName("x.example")) == {"TXT"}


AUDITED = [
    # the settings of the user's file, of the layer; the layer's rules; what becomes of it
    ("{mode: audit}", "", "mandatory", [REST_DENY], Outcome.BLOCKED),
    ("{mode: audit}", "", "ceiling", [], Outcome.BLOCKED),
    ("{mode: audit}", "", "mandatory", [], Outcome.WOULD_BLOCK),
    ("", "{mode: audit}", "ceiling", [ALLOW.replace("x.", "y.")], Outcome.WOULD_BLOCK),
    ("{mode: enforce}", "{mode: audit}", "ceiling", [ALLOW.replace("x.", "y.")], Outcome.BLOCKED),
]  # fmt: skip


@pytest.mark.parametrize(("user", "own", "kind", "rules", "outcome"), AUDITED)
def test_layer_has_its_own_mode(user, own, kind, rules, outcome, tmp_path):  # noqa: PLR0917 - a row
    asked = read(written(tmp_path, file("u", [], settings=user), file("l", rules, kind, own))).policy
    assert parse_attempt(X).decide(asked).outcome is outcome


SETTINGS = [
    ("{idle_timeout: 5m}", "{idle_timeout: 10m}", "idle_timeout", 300.0),
    ("{idle_timeout: 5m}", "{mode: audit}", "idle_timeout", 300.0),
    ("{tls: inspect}", "{tls: splice}", "tls", "inspect"),
    ("{}", "{dns: real}", "dns", "real"),
    ("{dns: real}", "{on_block: reset}", "on_block", "reset"),
    ("{on_journal_failure: block}", "{on_journal_failure: continue}", "on_journal_failure", "block"),
]  # fmt: skip


@pytest.mark.parametrize(("user", "layer", "key", "value"), SETTINGS)
def test_other_files_can_tighten_settings_of_a_layer(user, layer, key, value, tmp_path):
    user = "" if user == "{}" else user
    settings = read(written(tmp_path, file("u", [], settings=user), file("l", [], "mandatory", layer))).policy.settings
    assert getattr(settings, key) == value


LAXER = [
    ("{mode: audit}", "{mode: enforce}", "`mode` is less strict here than in `"),
    ("{tls: splice}", "{tls: inspect}", "`tls` is less strict"),
    ("{dns: real}", "{dns: synthetic}", "`dns` is less strict"),
    ("{idle_timeout: 11m}", "{idle_timeout: 10m}", "`idle_timeout` is less strict"),
    ("{on_journal_failure: continue}", "{on_journal_failure: block}", "`on_journal_failure` is less strict"),
    ("{on_block: explain}", "{on_block: reset}", "`on_block` has another value in `"),
    ("{dns_pool: 10.64.0.0/16}", "{dns_pool: 10.65.0.0/16}", "`dns_pool` has another value"),
    ("{upstream: 'http://p.example:3128'}", "{mode: enforce}", "`upstream` can be set only by a layer where there is one: remove it here"),
    ("{upstream_ca: /etc/ca.pem}", "{mode: enforce}", "`upstream_ca` can be set only by a layer"),
]  # fmt: skip


@pytest.mark.parametrize(("user", "layer", "part"), LAXER)
def test_no_file_loosens_settings_of_a_layer(user, layer, part, tmp_path):
    paths = written(tmp_path, file("u", [], settings=user), file("l", [], "mandatory", layer))
    for order in (paths, paths[::-1]):
        with pytest.raises(RuleFileError) as error:
            read(order)
        [problem] = error.value.problems
        assert part in problem.message
        assert (problem.file, problem.line) == (str(paths[0]), 3)


def test_upstream_proxy_belongs_to_the_layer(tmp_path):
    paths = written(tmp_path, file("u", [], settings="{upstream: 'http://p.example:3128'}"), file("l", [], "mandatory"))
    with pytest.raises(RuleFileError, match="`upstream` can be set only by a layer"):
        read(paths)


def test_two_plain_files_cannot_both_have_settings(tmp_path):
    texts = [
        file("u", [], settings="{mode: audit}"),
        file("v", [], settings="{mode: audit}"),
        file("l", [], "mandatory", "{tls: splice}"),
    ]
    with pytest.raises(RuleFileError, match=r"`settings` are in `.*` already: only one file may have them"):
        read(written(tmp_path, *texts))


def test_layers_change_the_revision(tmp_path):
    def revision(*texts):
        return read(written(tmp_path, *texts)).policy.revision

    plain = revision(file("u", [ALLOW]), file("l", [REST_DENY]))
    mandatory = revision(file("u", [ALLOW]), file("l", [REST_DENY], "mandatory"))
    ceiling = revision(file("u", [ALLOW]), file("l", [REST_DENY], "ceiling"))
    assert len({plain, mandatory, ceiling}) == 3
    assert mandatory == revision(file("l", [REST_DENY], "mandatory"), file("u", [ALLOW]))
    audited = file("l", [REST_DENY], "mandatory", "{mode: audit}")
    assert revision(file("u", [ALLOW], settings="{mode: enforce}"), audited) != mandatory
    assert read(written(tmp_path, file("u", []))).policy.settings.mode is Mode.ENFORCE


DISCREET = "{id: a, to: x.example, http: {paths: /**}, log: pattern, action: allow}"
LOGGED = [
    # the layer's rules, what is told of the path (None: all of it)
    ("{id: f, to: x.example, log: full, action: flag}", None),
    ("{id: f, to: '*', default: true, log: full, action: flag}", None),
    ("{id: f, to: x.example, log: full, action: deny}", None),
    ("{id: f, to: x.example, action: flag}", "/**"),
    ("{id: f, to: y.example, log: full, action: flag}", "/**"),
    ("{id: f, to: x.example, http: {paths: /secret/*}, log: pattern, action: flag}", "/**, /secret/*"),
]


@pytest.mark.parametrize("kind", ["mandatory", "ceiling"])
@pytest.mark.parametrize(("layer", "pattern"), LOGGED)
def test_no_file_hides_what_a_layer_records(layer, pattern, kind, tmp_path):
    asked = read(written(tmp_path, file("u", [DISCREET]), file("l", [layer], kind))).policy
    assert parse_attempt("GET https://x.example/secret/1").decide(asked).pattern == pattern


def test_most_discreet_rule_of_a_layer_applies(tmp_path):
    full = "{id: f, to: x.example, log: full, action: flag}"
    asked = read(written(tmp_path, file("u", []), file("l", [full, DISCREET], "mandatory"))).policy
    assert parse_attempt("GET https://x.example/secret/1").decide(asked).pattern == "/**"


@pytest.mark.parametrize(
    ("layer", "outcome"), [("", "allow"), ("layer: mandatory\n", "allow"), ("layer: ceiling\n", "deny")]
)
def test_roots_ceiling_stays_a_ceiling(tmp_path, layer, outcome):
    """docs/reference/rules.md, Layers: a mandatory file without a word on it is no vote, a ceiling's silence denies."""
    roots, own = tmp_path / "roots.yaml", tmp_path / "own.yaml"
    roots.write_text(f"version: 1\n{layer}rules: [{{id: d, to: other.example, action: deny}}]\n")
    own.write_text(f"version: 1\nrules: [{ALLOW}]\n")
    decision = parse_attempt(X).decide(read([own], mandatory=[roots]).policy)
    assert decision.verdict.value == outcome


@pytest.mark.parametrize("layer", ["mandatory", "ceiling"])
def test_layer_ask_by_address_holds_what_another_file_allows(tmp_path, layer):
    inside = "{id: q, to: '*', resolves_to: 10.0.0.0/8, action: ask}"
    allow = "{id: a, to: x.example, resolves_to: [0.0.0.0/0, 10.0.0.0/8], action: allow}"
    root = file("root", [inside, *([allow] if layer == "ceiling" else [])], layer=layer)
    policy = read(written(tmp_path, file("u", [allow.replace("id: a", "id: b")]), root)).policy
    attempt = parse_attempt(X).attempt(policy)
    assert told(policy.decide(attempt)).startswith("allow rule ")
    held = policy.held_at(attempt, parse_address("10.1.1.1"))
    assert held is not None
    assert [asks.rule for asks in held.approval] == ["root:q"]
    granted = attempt._replace(granted=frozenset(asks.digest for asks in held.approval))
    assert policy.check_address(attempt, parse_address("10.1.1.1")) is Reason.APPROVAL_UNAVAILABLE
    assert policy.check_address(granted, parse_address("10.1.1.1")) is None
    assert policy.held_at(attempt, parse_address("1.1.1.1")) is None
    assert policy.held_at(granted, parse_address("10.1.1.1")) is None
