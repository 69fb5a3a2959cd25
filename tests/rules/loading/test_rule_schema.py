"""`to` entries that are no name and no address, and the suggested correction."""

import pytest

from rules.loading.rule_schema import parse_target
from tests.rules.rule_texts import problems

MISTAKES = [
    ("https://github.com/acme", "`to` takes a name or an address; write `github.com` and the path under `http`, as in `{paths: [/acme]}`"),
    ("https://github.com", "`to` takes a name or an address; write `github.com`"),
    ("https://github.com/", "`to` takes a name or an address; write `github.com`"),
    ("http://x.test:8080/a", "write `x.test` and the port under `ports`, as in `8080/tls` and the path under `http`, as in `{paths: [/a]}`"),
    ("*.com:443", "`to` takes a name or an address; write `*.com` and the port under `ports`"),
    ("x.test:5432", "write `x.test` and the port under `ports`, as in `5432/tls`"),
    ("10.0.0.1:80", "write `10.0.0.1` and the port under `ports`"),
    ("[::1]:443", "write `::1` and the port under `ports`"),
    ("x.test/a", "write `x.test` and the path under `http`, as in `{paths: [/a]}`"),
    (".x.test", "`.x.test` begins with a dot: write `**.x.test` for the name and all below it"),
    ("x.test:ssh", "`x.test:ssh` is not an address or a CIDR"),
    ("http://", "`http://` is not an address or a CIDR"),
    ("://", "`://` is not an address or a CIDR"),
    ("a b/c", "`a b/c` is not an address or a CIDR"),
    ("10.0.0.1/8", "`10.0.0.1/8` has bits set behind its prefix"),
    ("x.test:443:443", "`x.test:443:443` is not an address or a CIDR"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_error_names_what_to_write_instead(text, says):
    (problem,) = problems(f"- {{id: a, to: '{text}', action: deny}}")
    assert says in problem


@pytest.mark.parametrize("text", ["x.test", "*", "**.x.test", "10.0.0.0/8", "::1", "2001:db8::/32", "127.1", "0x7f.1"])
def test_valid_values_are_accepted(text):
    parse_target(text)


def test_error_messages_escape_control_characters():
    (problem,) = problems('- {id: a, to: "https://x.test/\\x1b[2Ja", action: deny}')
    assert "\x1b" not in problem
