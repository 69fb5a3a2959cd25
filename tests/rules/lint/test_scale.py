"""Twice the rules, twice the work: lint compares no rule with every other one, however alike they are."""

from datetime import date

import pytest

from rules.lint import LintContext, lint
from tests.rules.test_globs import calls
from tests.rules.writing import loaded

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
