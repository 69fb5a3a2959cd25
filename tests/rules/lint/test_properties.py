"""Removing all rules that lint calls idle changes no decision, and the work of lint is linear in the rules."""

from datetime import date

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rules.lint import LintContext, lint, rule_pairs
from rules.lint.coverage import pattern_covers
from rules.lint.findings import PART_IDLE, Reporter
from rules.loading.load import Loaded
from rules.matching.policy import Policy
from rules.values.paths import PathPattern
from rules.verdicts import Reason
from tests.rules.rule_texts import loaded
from tests.rules.strategies import ADDRESSES, NAMES, attempts, granting, modes, pools, rules
from tests.rules.values.test_globs import calls

many = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def found(policy):
    return list(rule_pairs.find_idle_rules(policy, list(policy.rules), Reporter(Loaded(policy, (), (), {}))))


FIELDS = ["action", "names", "ports", "http", "default", "excepts", "tls"]
other_rules = rules()
other_fields = st.lists(st.sets(st.sampled_from(FIELDS)), max_size=3)


@st.composite
def crowded(draw):
    """Pools in which rules are often alike: copies of one with something made wider or narrower."""
    pool = draw(pools)
    for base in pool[:2]:
        other = draw(other_rules)
        for keys in draw(other_fields):
            changed = {key: getattr(other, key) for key in keys}
            if "names" in keys:
                changed |= {"networks": other.networks}
            if "action" in keys:
                changed |= {"ports": other.ports, "action": other.action}
            pool.append(base._replace(**changed))
    return [rule._replace(id=f"t:{number}") for number, rule in enumerate(pool)]


def without(policy, findings):
    """The pool, but for what the findings say does nothing."""
    gone = {finding.rules[0] for finding in findings if finding.check is not PART_IDLE}
    idle_parts = {}
    for finding in findings:
        if finding.check is PART_IDLE:
            text = finding.message.split("`")[1]
            idle_parts.setdefault(finding.rules[0], set()).add(text)
    kept = []
    for rule in policy.rules:
        parts = idle_parts.get(rule.id, ())
        if rule.id not in gone:
            names = tuple(name for name in rule.names if name.text not in parts)
            networks = tuple(network for network in rule.networks if str(network) not in parts)
            kept.append(rule._replace(names=names, networks=networks))
    return kept


@many
@given(crowded(), modes, st.lists(attempts, min_size=20, max_size=20), st.sampled_from(ADDRESSES), st.booleans())
def test_removing_a_rule_without_effect_changes_no_decision(pool, given_settings, tried, address, granted):
    policy = Policy(pool, given_settings)
    findings = found(policy)
    event(f"{min(len(findings), 3)} findings")
    smaller = Policy(without(policy, findings), given_settings)
    if not any(finding.check is PART_IDLE for finding in findings):  # else an ask without its idle targets is another
        every = range(len(pool)) if granted else ()
        tried = [granting(attempt, pool, every) for attempt in tried]
    # Requests that stand for exemptions are found for paths, methods, bodies and git, and not for all that meets there.
    exempting = any(exemption.looks_at_requests for rule in pool for exemption in rule.excepts)
    for attempt in tried:
        if attempt.request is None and exempting:
            continue
        before, after = policy.decide(attempt), smaller.decide(attempt)
        assert (before.verdict, before.outcome) == (after.verdict, after.outcome), (attempt, [str(f) for f in findings])
        if before.passes:
            assert before.idle_timeout == after.idle_timeout
            assert before.inspect or not after.inspect
            one, other = policy.check_address(attempt, address), smaller.check_address(attempt, address)
            assert one is other or Reason.ADDRESS_NOT_LISTED in {one, other}
    for name in () if exempting else NAMES:
        assert policy.decide_name(name).passes == smaller.decide_name(name).passes


PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "**", "a*", "*b", "%2F"]), max_size=4)


@many
@given(PATTERNS, PATTERNS, st.lists(st.lists(st.sampled_from(["a", "b", "ab", "axb", "/"]), max_size=6), max_size=20))
def test_covering_patterns_are_transitive(wide, narrow, readings):
    for parts in (wide, narrow):
        if parts.count("**") > 2:
            return
    one, other = PathPattern.parse("/" + "/".join(wide)), PathPattern.parse("/" + "/".join(narrow))
    if pattern_covers(one.parts, other.parts):
        assert all(one.matches(tuple(reading)) for reading in readings if other.matches(tuple(reading)))


KINDS = {
    "hosts": "to: h{n}.test, action: allow",
    "one host, many paths": "to: a.test, http: {{paths: /p{n}/**}}, action: allow",
    "one host, many ports": "to: a.test, ports: {n}/tcp, action: allow",
    "every name, many ports": "to: '*', ports: {n}/tcp, action: ask",
    "one host, many methods": "to: a.test, http: {{methods: [M{n}]}}, action: deny",
    "the same rule": "to: a.test, action: allow",
    "wildcards": "to: '*.w{n}.test', action: allow",
    "wildcards in labels": "to: 'g{n}x*.test', action: allow",
    "addresses": "to: 1.1.{m}.{k}, action: allow",
    "spliced": "to: s{n}.test, tls: splice, action: allow",
    "exempting": "to: a.test, except: e{n}.test, action: deny",
    "ways around": "to: a.test, ports: {n}/tls, http: {{methods: [PUT]}}, action: deny",
}
SIZE = 150


def files(rule, number):
    lines = [rule.format(n=n + 1000, m=n // 250, k=n % 250) for n in range(number)]
    return loaded(
        "\n".join(f"- {{id: r{n}, {line}}}" for n, line in enumerate(lines))
        + "\n- {id: raw, to: a.test, ports: 22/tcp, action: allow}\n"
    )


@pytest.mark.parametrize("rule", KINDS.values(), ids=KINDS)
def test_work_grows_linearly_with_rules(rule):
    around = LintContext(date(2027, 1, 1))
    once, twice = files(rule, SIZE), files(rule, 2 * SIZE)
    lint(files(rule, 2), around)  # what is worked out once for all
    assert calls(lint, twice, around) < 2.4 * calls(lint, once, around)
