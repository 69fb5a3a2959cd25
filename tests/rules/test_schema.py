"""Every mistake in a rule file is told, in its place, with the correction; and nothing is passed over in silence."""

import pytest

from rules.fields import duration, slugged
from rules.rule_schema import LATER_EXCEPT_KEYS, LATER_HTTP_KEYS, LATER_RULE_KEYS
from rules.schema import LATER_FILE_KEYS, LATER_INCLUDE_KEYS, LATER_SETTINGS_KEYS, LATER_TEST_KEYS
from rules.verdicts import DnsMode, Mode, OnBlock, TlsMode
from tests.rules.writing import loaded, policy, problems

OK = "id: a, to: x.example, action: allow"

WRONG = [
    # keys
    ("- {id: a, to: x.example, actoin: allow}", ["`actoin` is not a key of a rule; did you mean `action`?", "a rule needs `action`"]),
    ("- {id: a, to: x.example, action: alow}", ["`alow` is no value of `action`, which is one of deny, ask, flag, allow; did you mean `allow`?"]),
    ("- {id: a, id: b, to: x.example, action: allow}", ["`id` is here twice; first in line 5"]),
    ("- {to: x.example, action: allow}", ["a rule needs `id`"]),
    ("- {id: a, action: allow}", ["a rule needs `to`"]),
    ("- foo", ["a rule must be a mapping"]),
    ("- [a]", ["a rule must be a mapping"]),
    ("- {id: Foo_Bar, to: x.example, action: allow}", ["`Foo_Bar` must be lower-case letters, digits and hyphens, at most 63: `foo-bar`"]),
    ("- {id: -a, to: x.example, action: allow}", ["must be lower-case"]),
    (f"- {{{OK}}}\n- {{{OK}}}", ["the id of this rule is also that of the one in line 5"]),
    # empty is never everything (CVE-2025-66479)
    ("- {id: a, to: [], action: allow}", ["`to` is empty"]),
    ("- {id: a, to: , action: allow}", ["`to` has no value"]),
    ("- {id: a, to: ~, action: allow}", ["`to` has no value; put ~ in quotes"]),
    ("- {id: a, to: null, action: allow}", ["`to` has no value; put null in quotes"]),
    ("- {id: a, to: '', action: allow}", ["`to` has no value"]),
    ("- {id: a, to: x.example, ports: [], action: allow}", ["`ports` is empty"]),
    ("- {id: a, to: x.example, resolves_to: [], action: allow}", ["`resolves_to` is empty"]),
    ("- {id: a, to: x.example, http: {}, action: allow}", ["`http` says nothing"]),
    ("- {id: a, to: x.example, http: {methods: []}, action: allow}", ["`methods` is empty"]),
    ("- {id: a, to: x.example, http: {paths: []}, action: allow}", ["`paths` is empty"]),
    ("- {id: a, to: x.example, except: [], action: allow}", ["`except` is empty"]),
    ("- {id: a, to: x.example, except: [{}], action: allow}", ["this `except` says nothing"]),
    # to
    ("- {id: a, to: a..b, action: allow}", ["`a..b` has an empty label"]),
    ("- {id: a, to: https://x.example, action: allow}", ["`https://x.example` is not an address or a CIDR"]),
    ("- {id: a, to: x.example:443, action: allow}", ["`x.example:443` is not an address"]),
    ("- {id: a, to: '**', action: allow}", ["every name at all is `*`"]),
    ("- {id: a, to: 'a.**.b.example', action: allow}", ["`**` stands only in front"]),
    ("- {id: a, to: 10.0.0.1/8, action: deny}", ["write `10.0.0.0/8`"]),
    ("- {id: a, to: 010.0.0.1, action: deny}", ["write `8.0.0.1`"]),
    ("- {id: a, to: {list: ads.txt}, action: deny}", ["`list` is not supported by this version"]),
    ("- {id: a, to: {name: x.example}, action: deny}", ["`to` must be one word or text, not a mapping"]),
    ("- {id: a, to: [[x.example]], action: deny}", ["`to` must be one word or text, not a list"]),
    # wildcards over strangers
    ("- {id: a, to: '*.com', action: allow}", ["`*.com` lets out to whoever registers a name under the public suffix `com`"]),
    ("- {id: a, to: '**.co.uk', action: flag}", ["public suffix `co.uk`"]),
    ("- {id: a, to: 'x*.com', action: allow}", ["public suffix `com`"]),
    ("- {id: a, to: 'api.*.com', action: allow}", ["public suffix `com`"]),
    ("- {id: a, to: '*.*.com', action: allow}", ["public suffix `com`"]),
    ("- {id: a, to: '*.ck', action: allow}", ["public suffix `ck`"]),
    ("- {id: a, to: '*.kawasaki.jp', action: allow}", ["public suffix `kawasaki.jp`"]),
    ("- {id: a, to: '*.公司.cn', action: allow}", ["public suffix `xn--55qx5d.cn`"]),
    # addresses that nothing opens
    ("- {id: a, to: 169.254.0.0/16, action: allow}", ["`169.254.0.0/16` is link-local: list the single addresses"]),
    ("- {id: a, to: 0.0.0.0, action: allow}", ["`0.0.0.0/32` is this network: no rule can let anything out to it"]),
    ("- {id: a, to: x.example, resolves_to: 224.0.0.0/8, action: allow}", ["`224.0.0.0/8` is multicast"]),
    ("- {id: a, to: x.example, resolves_to: 'fe80::/10', action: allow}", ["`fe80::/10` is link-local"]),
    ("- {id: a, to: x.example, resolves_to: '64:ff9b::/96', action: flag}", ["is NAT64"]),
    # ports
    ("- {id: a, to: x.example, ports: 22, action: allow}", ["`22` needs what is spoken there: `22/tls`, `22/http` or `22/tcp`"]),
    ("- {id: a, to: x.example, ports: 8000-8100, action: allow}", ["`8000-8100` needs what is spoken there"]),
    ("- {id: a, to: x.example, ports: 443-444, action: allow}", ["`443-444` needs what is spoken there"]),
    ("- {id: a, to: x.example, ports: 22/ssh, action: allow}", ["`ssh` is not a protocol"]),
    ("- {id: a, to: x.example, ports: 22/TCP, action: allow}", ["`TCP` is not a protocol"]),
    ("- {id: a, to: x.example, ports: 22/, action: allow}", ["`` is not a protocol"]),
    ("- {id: a, to: x.example, ports: 0/tcp, action: deny}", ["between 1 and 65535"]),
    ("- {id: a, to: x.example, ports: 65536/tcp, action: deny}", ["between 1 and 65535"]),
    ("- {id: a, to: x.example, ports: 99999999999999999999/tcp, action: deny}", ["between 1 and 65535"]),
    ("- {id: a, to: x.example, ports: 9-3/tcp, action: deny}", ["`9-3/tcp` ends before it begins"]),
    ("- {id: a, to: x.example, ports: -5/tcp, action: deny}", ["between 1 and 65535"]),
    ("- {id: a, to: x.example, ports: 5-/tcp, action: deny}", ["between 1 and 65535"]),
    ("- {id: a, to: x.example, ports: 0443, action: deny}", ["write `443`"]),
    ("- {id: a, to: x.example, ports: 53/udp, action: allow}", ["letting out `/udp` is not supported by this version"]),
    # http
    ("- {id: a, to: x.example, http: {methods: [get]}, action: allow}", ["`get` is not a method; methods are written like `GET`"]),
    ("- {id: a, to: x.example, http: {methods: ['GE T']}, action: allow}", ["is not a method"]),
    ("- {id: a, to: x.example, http: {methods: [GET], path: /a}, action: allow}", ["`path` is not a key of `http`; did you mean `paths`?"]),
    ("- {id: a, to: x.example, http: {paths: a}, action: allow}", ["`a` must begin with a slash: `/a`"]),
    ("- {id: a, to: x.example, http: {paths: /a/../b}, action: allow}", ["`/a/../b` has `..` in it"]),
    ("- {id: a, to: x.example, http: GET, action: allow}", ["`http` must be a mapping"]),
    ("- {id: a, to: x.example, ports: 22/tcp, http: {methods: [GET]}, action: allow}", ["`http` needs ports on which requests can be seen"]),
    ("- {id: a, to: x.example, ports: 22/tcp, http: {methods: [GET]}, action: deny}", ["`http` needs ports on which requests can be seen"]),
    # what makes no sense together
    ("- {id: a, to: x.example, tls: splice, http: {methods: [GET]}, action: allow}", ["it can't stand beside `http`"]),
    ("- {id: a, to: x.example, tls: splice, except: [{http: {methods: [PUT]}}], action: allow}", ["it can't stand beside `http`"]),
    ("- {id: a, to: x.example, ports: 22/tcp, tls: splice, action: allow}", ["none of the ports has `/tls`"]),
    ("- {id: a, to: x.example, tls: splice, action: deny}", ["`tls` belongs to rules that let out, and `deny` doesn't"]),
    ("- {id: a, to: x.example, idle_timeout: 5s, action: ask}", ["`idle_timeout` belongs to rules that let out, and `ask` doesn't"]),
    ("- {id: a, to: 10.0.0.1, resolves_to: 10.0.0.0/8, action: allow}", ["`resolves_to` is about names, and this rule has none"]),
    ("- {id: a, to: x.example, mode: audit, action: deny}", ["`mode` belongs to a rule with `default: true`"]),
    ("- {id: a, to: x.example, except: 10.0.0.0/8, action: allow}", ["`except` has addresses, and this rule is about none"]),
    ("- {id: a, to: 10.0.0.0/8, except: x.example, action: allow}", ["`except` has names, and this rule is about none"]),
    # values
    ("- {id: a, to: x.example, default: yes, action: deny}", ["`yes` is no value of `default`: write `true` or `false`"]),
    ("- {id: a, to: x.example, default: off, action: deny}", ["`off` is no value of `default`"]),
    ("- {id: a, to: x.example, idle_timeout: 10, action: allow}", ["a duration is a number and a unit"]),
    ("- {id: a, to: x.example, idle_timeout: 0s, action: allow}", ["`0s` is not between 1s and 7d"]),
    ("- {id: a, to: x.example, idle_timeout: 99d, action: allow}", ["not between"]),
    ("- {id: a, to: x.example, why: [a], action: allow}", ["`why` must be one word or text, not a list"]),
    ("- {id: a, to: x.example, why: '" + "x" * 5000 + "', action: allow}", ["`why` is longer than 4096 characters"]),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), WRONG)
def test_a_wrong_rule_is_told(rules, expected):
    found = problems(rules)
    assert len(found) == len(expected), found
    for message, part in zip(sorted(found), sorted(expected), strict=True):
        assert part in message
        assert not message.endswith(".")
        assert not message[0].isupper()


HEADS = [
    ("version: 2", "reads `version: 1` and no other"),
    ("name: x", "a rule file needs `version: 1`"),
    ("version: 1\nname: Web Team", "`web-team`"),
    ("version: 1\nrulez: []", "`rulez` is not a key of a rule file; did you mean `rules`?"),
    ("version: 1\nrules: {a: b}", "`rules` must be a list"),
    ("version: 1\nsettings: [a]", "`settings` must be a mapping"),
    ("version: 1\nsettings: {mode: audti}", "`audti` is no value of `mode`, which is one of enforce, audit; did you mean `audit`?"),
    ("version: 1\nsettings: {tls: none}", "one of inspect, splice"),
    ("version: 1\nsettings: {on_block: 403}", "one of reset, explain, dns_refused"),
    ("version: 1\nsettings: {dns_pool: 10.0.0.0/25}", "at least a /24"),
    ("version: 1\nsettings: {dns_pool: 'fd00::/8'}", "must be an IPv4 network"),
    ("version: 1\nsettings: {dns_pool: 127.0.0.0/8}", "overlaps `127.0.0.0/8` (loopback)"),
    ("version: 1\nsettings: {dns_pool: 0.0.0.0/0}", "overlaps"),
    ("version: 1\nsettings: {dns_pool: 240.0.0.0/8}", "overlaps"),
    ("version: 1\nsettings: {dns_pool: 169.254.0.0/16}", "overlaps"),
    ("version: 1\nsettings: {idle_timeout: soon}", "a duration is a number and a unit"),
    ("version: 1\ninclude: web.yaml", "`include` must be a list"),
    ("version: 1\ninclude: [web.yaml]", "an `include` must be a mapping"),
    ("version: 1\ninclude: [{}]", "an `include` needs `file`"),
    ("version: 1\ntests: [{attempt: 'x.example:443'}]", "a test needs `expect`"),
    ("version: 1\ntests: [{expect: allow}]", "a test needs `attempt`"),
    ("version: 1\ntests: [{attempt: foo, expect: deny}]", "needs a port"),
    ("version: 1\ntests: [{attempt: 'GET ftp://x', expect: deny}]", "is no attempt"),
    ("version: 1\ntests: [{attempt: 'git push https://x r', expect: deny}]", "`git` attempts are not supported by this version"),
    ("version: 1\ntests: [{attempt: '::1:443', expect: deny}]", "put an IPv6 address in brackets"),
    ("version: 1\ntests: [{attempt: 'GET https://u:p@x/', expect: deny}]", "credentials"),
    ("[]", "a rule file must be a mapping"),
    ("hello", "a rule file must be a mapping"),
    ("", "the file is empty"),
    ("# nothing", "the file is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "part"), HEADS)
def test_a_wrong_head_is_told(text, part, tmp_path):
    from rules.load import read
    from rules.problems import RuleFileError

    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(RuleFileError) as error:
        read([tmp_path / "t.yaml"])
    assert len(error.value.problems) == 1
    assert part in str(error.value)


@pytest.mark.parametrize("key", LATER_RULE_KEYS)
def test_a_key_of_a_later_version_is_never_passed_over(key):
    assert problems(f"- {{{OK}, {key}: x}}") == [f"`{key}` is not supported by this version"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("version: 1\n{}: x", LATER_FILE_KEYS),
        ("version: 1\ninclude: [{{{}: x}}]", LATER_INCLUDE_KEYS),
        ("version: 1\nsettings: {{{}: x}}", LATER_SETTINGS_KEYS),
        ("version: 1\ntests: [{{attempt: 'x.example:1', expect: deny, {}: x}}]", LATER_TEST_KEYS),
        ("version: 1\nrules: [{{id: a, to: b, action: deny, http: {{methods: GET, {}: x}}}}]", LATER_HTTP_KEYS),
        ("version: 1\nrules: [{{id: a, to: b, action: deny, except: [{{to: b, {}: x}}]}}]", LATER_EXCEPT_KEYS),
    ],
)
def test_so_are_keys_elsewhere(text, keys):
    for key in keys:
        assert problems(text.format(key)) == [f"`{key}` is not supported by this version"]


WARNED = [
    ("- {id: a, to: '*.github.io', action: allow}", "anybody can get a name under `github.io`"),
    ("- {id: a, to: '*.s3.amazonaws.com', action: flag}", "anybody can get a name under `s3.amazonaws.com`"),
    ("- {id: a, to: '**.amazonaws.com', action: allow}", "anybody can get a name under `amazonaws.com`"),
    ("- {id: a, to: 0.0.0.0/0, action: allow}", "`0.0.0.0/0` lets out to its public addresses only"),
    ("- {id: a, to: x.example, resolves_to: 8.0.0.0/6, action: allow}", "list `10.0.0.0/8` by itself"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "part"), WARNED)
def test_what_reaches_further_than_it_looks_is_warned_of(rules, part):
    [warning] = loaded(rules).warnings
    assert part in warning.message
    assert (warning.line, warning.file[-6:]) == (5, "t.yaml")


QUIET = ["'*.com', action: deny", "'*.com', action: ask", "'*.github.io', action: deny", "'*.example.com', action: allow", "'*', action: allow", "'*.corp', action: allow", "'*.city.kawasaki.jp', action: allow", "0.0.0.0/0, action: deny", "169.254.0.0/16, action: deny", "10.0.0.0/8, action: allow", "169.254.169.254, action: allow"]  # fmt: skip


@pytest.mark.parametrize("rule", QUIET)
def test_what_holds_back_may_be_as_wide_as_it_likes(rule):
    assert loaded(f"- {{id: a, to: {rule}}}").warnings == ()


def test_all_problems_are_told_at_once():
    rules = "- {id: a, to: ['*.com', a..b, '*.org'], ports: [22, 23], action: allow, git: x}\n- {id: b, tu: x, action: deni}"
    assert len(problems(rules)) == 9


def test_every_scalar_is_text_first():
    asked = policy("- {id: off, to: [007.example, 127.1, 1e3.example, on.example, yes, 1.2.3.4], action: deny}", "")
    assert asked.rule_ids == ("t:off",)
    [rule] = asked.rules
    assert [name.text for name in rule.names] == ["007.example", "1e3.example", "on.example", "yes"]
    assert [str(network) for network in rule.networks] == ["127.0.0.1/32", "1.2.3.4/32"]


def test_a_rule_means_what_it_says():
    head = "settings: {mode: audit, tls: splice, dns: real, dns_pool: 10.64.0.0/16, on_block: dns_refused, idle_timeout: 90s}"
    asked = policy(f"- {{{OK}}}\n- {{id: d, to: x.example, action: deny}}", head)
    settings = asked.settings
    assert (settings.mode, settings.tls, settings.dns, settings.on_block) == (Mode.AUDIT, TlsMode.SPLICE, DnsMode.REAL, OnBlock.DNS_REFUSED)  # fmt: skip
    assert (str(settings.dns_pool), settings.idle_timeout) == ("10.64.0.0/16", 90.0)
    allow, deny = asked.rules
    assert [str(ports) for ports in allow.ports or ()] == ["443/tls"]
    assert deny.ports is None
    assert allow.tls is TlsMode.SPLICE


def test_durations_and_slugs():
    assert [duration(text) for text in ("1s", "10m", "2h", "7d")] == [1.0, 600.0, 7200.0, 604800.0]
    assert [slugged(text) for text in ("Web Team", "--", "ü", "x" * 100)] == ["web-team", "rules", "rules", "x" * 63]
