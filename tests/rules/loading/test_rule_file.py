"""Every mistake in a rule file is told, in its place, with the correction; and nothing is passed over in silence."""

import pytest

from rules.loading.fields import make_slug, parse_duration
from rules.verdicts import DnsMode, Mode, OnBlock, TlsMode
from tests.rules.rule_texts import loaded, policy, problems

OK = "id: a, to: x.example, action: allow"

WRONG = [
    # keys
    ("- {id: a, to: x.example, actoin: allow}", ["`actoin` is not a key of a rule; did you mean `action`?"]),
    ("- {id: a, to: x.example, action: alow}", ["`alow` is not a value of `action`, which is one of deny, ask, flag, allow; did you mean `allow`?"]),
    ("- {id: a, id: b, to: x.example, action: allow}", ["`id` is here twice; first in line 5"]),
    ("- {to: x.example, action: allow}", ["a rule needs `id`"]),
    ("- {id: a, to: x.example, frobnicate: allow}", ["`frobnicate` is not a key of a rule", "a rule needs `action`"]),
    ("- {id: a, too: x.example}", ["`too` is not a key of a rule; did you mean `to`?", "a rule needs `action`"]),
    ("- {id: a, action: allow}", ["a rule needs `to`"]),
    ("- foo", ["a rule must be a mapping"]),
    ("- [a]", ["a rule must be a mapping"]),
    ("- {id: Foo_Bar, to: x.example, action: allow}", ["`Foo_Bar` must be at most 63 lower-case letters, digits and hyphens: `foo-bar`"]),
    ("- {id: -a, to: x.example, action: allow}", ["must be at most 63 lower-case"]),
    (f"- {{{OK}}}\n- {{{OK}}}", ["the id of this rule is also that of the one in line 5"]),
    (f" [{{{OK}}}, {{{OK}}}]", ["the id of this rule is also that of the one in column 3 of this line"]),
    (f' [{{{OK}}}, {{"id": "a", "to": "y.example", "action": "deny"}}]', ["the id of this rule is also that of the one in column 3 of this line"]),
    # empty is never everything (CVE-2025-66479)
    ("- {id: a, to: [], action: allow}", ["`to` is empty"]),
    ("- {id: a, to: , action: allow}", ["`to` has no value"]),
    ("- {id: a, to: ~, action: allow}", ["`to` has no value; put ~ in quotes"]),
    ("- {id: a, to: null, action: allow}", ["`to` has no value; put null in quotes"]),
    ("- {id: a, to: '', action: allow}", ["`to` has no value"]),
    ("- {id: a, to: x.example, ports: [], action: allow}", ["`ports` is empty"]),
    ("- {id: a, to: x.example, resolves_to: [], action: allow}", ["`resolves_to` is empty"]),
    ("- {id: a, to: x.example, http: {}, action: allow}", ["`http` is empty"]),
    ("- {id: a, to: x.example, http: {methods: []}, action: allow}", ["`methods` is empty"]),
    ("- {id: a, to: x.example, http: {paths: []}, action: allow}", ["`paths` is empty"]),
    ("- {id: a, to: x.example, except: [], action: allow}", ["`except` is empty"]),
    ("- {id: a, to: x.example, except: [{}], action: allow}", ["this `except` is empty"]),
    # to
    ("- {id: a, to: a..b, action: allow}", ["`a..b` has an empty label"]),
    ("- {id: a, to: https://x.example, action: allow}", ["`https://x.example`: `to` takes a name or an address; write `x.example`"]),
    ("- {id: a, to: x.example:443, action: allow}", ["`x.example:443`: `to` takes a name or an address; write `x.example` and the port under `ports`"]),
    ("- {id: a, to: '**', action: allow}", ["every name at all is `*`"]),
    ("- {id: a, to: 'a.**.b.example', action: allow}", ["`**` stands only in front"]),
    ("- {id: a, to: 10.0.0.1/8, action: deny}", ["write `10.0.0.0/8`"]),
    ("- {id: a, to: 010.0.0.1, action: deny}", ["write `8.0.0.1`"]),
    ("- {id: a, to: {list: ads.txt}, action: deny}", ["`ads.txt` can't be read: no such file or directory"]),
    ("- {id: a, to: “x.example”, action: deny}", ["`“x.example”` has typographic quotes: write `x.example`"]),
    ("- {id: a, to: {name: x.example}, action: deny}", ["`to` takes names and addresses, and lists of names as `{list: FILE}`"]),
    ("- {id: a, to: [[x.example]], action: deny}", ["`to` must be one word or text, not a list"]),
    # wildcards over strangers
    ("- {id: a, to: '*.com', action: allow}", ["`*.com` allows everyone who registers a name under the public suffix `com`"]),
    ("- {id: a, to: '**.co.uk', action: flag}", ["public suffix `co.uk`"]),
    ("- {id: a, to: 'x*.com', action: allow}", ["public suffix `com`"]),
    ("- {id: a, to: 'api.*.com', action: allow}", ["public suffix `com`"]),
    ("- {id: a, to: '*.*.com', action: allow}", ["public suffix `com`"]),
    ("- {id: a, to: '*.ck', action: allow}", ["public suffix `ck`"]),
    ("- {id: a, to: '*.kawasaki.jp', action: allow}", ["public suffix `kawasaki.jp`"]),
    ("- {id: a, to: '*.公司.cn', action: allow}", ["public suffix `xn--55qx5d.cn`"]),
    # addresses that nothing opens
    ("- {id: a, to: 169.254.0.0/16, action: allow}", ["`169.254.0.0/16` is link-local: list the single addresses"]),
    ("- {id: a, to: 0.0.0.0, action: allow}", ["`0.0.0.0/32` is this network, and no rule can allow it"]),
    ("- {id: a, to: x.example, resolves_to: 224.0.0.0/8, action: allow}", ["`224.0.0.0/8` is multicast"]),
    ("- {id: a, to: x.example, resolves_to: 'fe80::/10', action: allow}", ["`fe80::/10` is link-local"]),
    ("- {id: a, to: x.example, resolves_to: '64:ff9b::/96', action: flag}", ["is NAT64"]),
    # ports
    ("- {id: a, to: x.example, ports: 22, action: allow}", ["`22` needs what is spoken there: `22/tls`, `/http`, `/tcp` or `/udp`"]),
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
    ("- {id: a, to: x.example, ports: 53/udp, action: allow}", ["`53/udp` has port 53 in it: the gate answers DNS lookups itself"]),
    ("- {id: a, to: x.example, ports: 443/udp, action: flag}", ["`443/udp` has port 443 in it: QUIC is never allowed"]),
    ("- {id: a, to: x.example, ports: [123/udp, 400-500/udp], action: ask}", ["`400-500/udp` has port 443 in it: QUIC is never allowed"]),
    ("- {id: a, to: x.example, ports: 1-442/udp, action: allow}", ["`1-442/udp` has port 53 in it"]),
    ("- {id: a, to: x.example, ports: 123/udp, http: {methods: [GET]}, action: allow}", ["`http` needs a port with `/tls` or `/http`"]),
    # http
    ("- {id: a, to: x.example, http: {methods: [get]}, action: allow}", ["`get` is not a method; methods are written like `GET`"]),
    ("- {id: a, to: x.example, http: {methods: ['GE T']}, action: allow}", ["is not a method"]),
    ("- {id: a, to: x.example, http: {methods: [GET], path: /a}, action: allow}", ["`path` is not a key of `http`; did you mean `paths`?"]),
    ("- {id: a, to: x.example, http: {paths: a}, action: allow}", ["`a` must begin with a slash: `/a`"]),
    ("- {id: a, to: x.example, http: {paths: /a/../b}, action: allow}", ["`/a/../b` has `..` in it"]),
    ("- {id: a, to: x.example, http: GET, action: allow}", ["`http` must be a mapping"]),
    ("- {id: a, to: x.example, ports: 22/tcp, http: {methods: [GET]}, action: allow}", ["`http` needs a port with `/tls` or `/http`"]),
    ("- {id: a, to: x.example, ports: 22/tcp, http: {methods: [GET]}, action: deny}", ["`http` needs a port with `/tls` or `/http`"]),
    # what makes no sense together
    ("- {id: a, to: x.example, tls: splice, http: {methods: [GET]}, action: allow}", ["it can't be combined with `http`"]),
    ("- {id: a, to: x.example, tls: splice, except: [{http: {methods: [PUT]}}], action: allow}", ["it can't be combined with `http`"]),
    ("- {id: a, to: x.example, ports: 22/tcp, tls: splice, action: allow}", ["`tls: splice` needs a port with `/tls`"]),
    ("- {id: a, to: x.example, tls: splice, action: deny}", ["`tls` is for rules that allow or flag, and this is `deny`"]),
    ("- {id: a, to: x.example, idle_timeout: 5s, action: deny}", ["`idle_timeout` is for rules that allow or flag, and this is `deny`"]),
    ("- {id: a, to: 10.0.0.1, resolves_to: 10.0.0.0/8, action: allow}", ["`resolves_to` needs names, and this rule has none"]),
    ("- {id: a, to: x.example, mode: audit, action: deny}", ["`mode` belongs to a rule with `default: true`"]),
    ("- {id: a, to: x.example, except: 10.0.0.0/8, action: allow}", ["`except` has addresses, and this rule is about none"]),
    ("- {id: a, to: 10.0.0.0/8, except: x.example, action: allow}", ["`except` has names, and this rule is about none"]),
    # for whom
    ("- {id: a, to: x.example, for: {}, action: allow}", ["`for` is empty: leave it out, and the rule is for every task"]),
    ("- {id: a, to: x.example, for: web, action: allow}", ["`for` must be a mapping of `tasks`, `labels`"]),
    ("- {id: a, to: x.example, for: {task: web}, action: allow}", ["`task` is not a key of `for`; did you mean `tasks`?"]),
    ("- {id: a, to: x.example, for: {tasks: []}, action: allow}", ["`tasks` is empty"]),
    ("- {id: a, to: x.example, for: {labels: {}}, action: allow}", ["`labels` is a mapping of names to values, as in `{team: data}`"]),
    ("- {id: a, to: x.example, for: {labels: {team: []}}, action: allow}", ["`team` is empty"]),
    ("- {id: a, to: x.example, for: {labels: {te am: x}}, action: allow}", ["`te am` is not the name of a label"]),
    # until when
    ("- {id: a, to: x.example, until: 2027-01-31, action: deny}", ["`deny` can't have `until`: a rule never allows more because time has passed"]),
    ("- {id: a, to: x.example, until: 31.1.2027, action: allow}", ["`31.1.2027` is not a day; write it like `2027-01-31` (UTC)"]),
    ("- {id: a, to: x.example, until: 2027-1-31, action: allow}", ["`2027-1-31` is not a day"]),
    ("- {id: a, to: x.example, until: 2027-02-29, action: allow}", ["`2027-02-29` is not a day of the calendar"]),
    # how much
    ("- {id: a, to: x.example, limits: {}, action: allow}", ["`limits` is empty: it needs one of `connections`"]),
    ("- {id: a, to: x.example, limits: {per: task}, action: allow}", ["`limits` is empty"]),
    ("- {id: a, to: x.example, limits: {connections: 0}, action: allow}", ["`0` is not a number between 1 and 1000000000"]),
    ("- {id: a, to: x.example, limits: {requests: 1.5}, action: allow}", ["`1.5` is not a number"]),
    ("- {id: a, to: x.example, limits: {requests: 010}, action: allow}", ["`010`: write `10`"]),
    ("- {id: a, to: x.example, limits: {bytes_up: 2gb}, action: allow}", ["`2gb` is not a size; write a number and a unit"]),
    ("- {id: a, to: x.example, limits: {bytes_up: 100}, action: allow}", ["`100` is not a size"]),
    ("- {id: a, to: x.example, limits: {bytes_up: 0MB}, action: allow}", ["`0MB` is not a size"]),
    ("- {id: a, to: x.example, limits: {requests: 5, per: tasks}, action: allow}", ["`tasks` is not a value of `per`, which is one of rule, sandbox, task; did you mean `task`?"]),
    ("- {id: a, to: x.example, limits: {requests: 5}, action: deny}", ["`limits` is for rules that allow or flag, and this is `deny`"]),
    # on whose word
    ("- {id: a, to: x.example, approval: {by: dba}, action: allow}", ["`approval` is for rules with `action: ask`, and this is `allow`"]),
    ("- {id: a, to: x.example, approval: {by: dba}, action: deny}", ["`approval` is for rules with `action: ask`, and this is `deny`"]),
    ("- {id: a, to: x.example, approval: {}, action: ask}", ["`approval` is empty"]),
    ("- {id: a, to: x.example, approval: {by: dba, self: true}, action: ask}", ["`self: true` can't be combined with `by`"]),
    ("- {id: a, to: x.example, approval: {by: dba, covers: all}, action: ask}", ["`all` is not a value of `covers`, which is one of attempt, destination, rule"]),
    ("- {id: a, to: x.example, approval: {by: dba, for: ever}, action: ask}", ["a duration is a number and a unit"]),
    # requests
    ("- {id: a, to: x.example, http: {query: {}}, action: allow}", ["`query` is a mapping of names to values, `present` or `absent`"]),
    ("- {id: a, to: x.example, http: {query: [a]}, action: allow}", ["`query` is a mapping of names to values"]),
    ("- {id: a, to: x.example, http: {query: {a: presnt}}, action: allow}", ["`presnt` looks like a mistake; did you mean `present`?"]),
    ("- {id: a, to: x.example, http: {query: {a: []}}, action: allow}", ["`a` is empty"]),
    ("- {id: a, to: x.example, http: {headers: {Host: y.example}}, action: allow}", ["`Host` is set by the gate: use `to` for the host"]),
    ("- {id: a, to: x.example, http: {headers: {'a b': x}}, action: allow}", ["`a b` is not the name of a header"]),
    ("- {id: a, to: x.example, http: {headers: {X-A: x, x-a: y}}, action: allow}", ["`x-a` is here twice, once in another case"]),
    ("- {id: a, to: x.example, http: {body: maybe}, action: allow}", ["`maybe` is not a value of `body`"]),
    ("- {id: a, to: x.example, http: {max_url: 2}, action: allow}", ["`2` is not a size"]),
    ("- {id: a, to: x.example, http: {max_url: 2KB}, action: deny}", ["`max_url` is for rules that allow or flag"]),
    ("- {id: a, to: x.example, except: [{http: {max_url: 2KB}}], action: allow}", ["`max_url` is for rules that allow or flag"]),
    # git
    ("- {id: a, to: x.example, git: {fetch: true}, action: allow}", ["`git` needs `repos`"]),
    ("- {id: a, to: x.example, git: {repos: a/b}, action: allow}", ["`git` covers nothing: it needs `fetch: true`, `push` or both"]),
    ("- {id: a, to: x.example, git: {repos: a/b, fetch: true, changes: create}, action: allow}", ["`changes` needs `push` beside it"]),
    ("- {id: a, to: x.example, git: {repos: /a/b, fetch: true}, action: allow}", ["`/a/b` must be the path of a repository on its host, as in `acme/web`"]),
    ("- {id: a, to: x.example, git: {repos: 'https://x/a', fetch: true}, action: allow}", ["must be the path of a repository"]),
    ("- {id: a, to: x.example, git: {repos: a/b, push: main}, action: allow}", ["`main` must be a whole ref, as in `refs/heads/main`"]),
    ("- {id: a, to: x.example, git: {repos: a/b, push: refs/heads/*, changes: force}, action: allow}", ["`force` is not a value of `changes`, which is one of delete, update, create"]),
    ("- {id: a, to: x.example, git: {repos: a/b, push: 'refs/he**ds/x'}, action: allow}", ["`**` stands for whole segments"]),
    ("- {id: a, to: x.example, ports: 22/tcp, git: {repos: a/b, fetch: true}, action: allow}", ["`git` needs a port with `/tls` or `/http`"]),
    # what else
    ("- {id: a, to: x.example, credential: 'Not A Slug', action: allow}", ["must be at most 63 lower-case letters"]),
    ("- {id: a, to: x.example, ports: 22/tcp, credential: key, action: allow}", ["`credential` needs a port with `/tls` or `/http`"]),
    ("- {id: a, to: x.example, when: clean, action: ask}", ["`clean` is not a value of `when`: write `tainted`"]),
    ("- {id: a, to: x.example, when: tainted, action: allow}", ["`when: tainted` is for `deny`, `ask` and `flag`, and this is `allow`"]),
    ("- {id: a, to: x.example, dns_types: [TXT, A], action: allow}", ["`A` can't be listed: addresses are answered wherever a rule allows the name"]),
    ("- {id: a, to: x.example, dns_types: txt, action: allow}", ["`txt` is not a record type that can be listed"]),
    ("- {id: a, to: x.example, dns_types: HTTPS, action: allow}", ["`HTTPS` can't be listed: it is never answered"]),
    ("- {id: a, to: 1.2.3.4, dns_types: TXT, action: allow}", ["`dns_types` needs names, and this rule has none"]),
    ("- {id: a, to: x.example, dns_types: TXT, action: ask}", ["`dns_types` is for rules that allow or flag, and this is `ask`"]),
    ("- {id: a, to: x.example, ca: corp.pem, action: deny}", ["`ca` is for rules that allow or flag, and this is `deny`"]),
    ("- {id: a, to: x.example, ca: corp.pem, tls: splice, action: allow}", ["it can't be combined with `ca`"]),
    ("- {id: a, to: x.example, scan: block, tls: splice, action: allow}", ["it can't be combined with `scan`"]),
    ("- {id: a, to: x.example, ports: [443/tls, 22/tcp], scan: block, action: allow}", ["`scan: block` looks at requests, and 22/tcp isn't read"]),
    ("- {id: a, to: x.example, ports: 123/udp, scan: flag, action: ask}", ["`scan: flag` looks at requests, and 123/udp isn't read"]),
    ("- {id: a, to: x.example, git: {repos: a/b, fetch: true}, tls: splice, action: allow}", ["it can't be combined with `git`"]),
    ("- {id: a, to: x.example, scan: block, action: deny}", ["`scan` is for rules that allow or flag"]),
    ("- {id: a, to: x.example, trust: maybe, action: allow}", ["`maybe` is not a value of `trust`, which is one of untrusted, trusted"]),
    ("- {id: a, to: x.example, log: none, action: allow}", ["`none` is not a value of `log`, which is one of pattern, full"]),
    ("- {id: a, to: 1.2.3.4, except: [{resolves_to: 10.0.0.0/8}], action: allow}", ["`resolves_to` needs names, and this rule has none"]),
    ("- {id: a, to: x.example, except: [{for: {tasks: []}}], action: allow}", ["`tasks` is empty"]),
    ("- {id: a, to: x.example, except: [{until: 2027-01-01}], action: allow}", ["`until` is not a key of an `except`"]),
    # values
    ("- {id: a, to: x.example, default: yes, action: deny}", ["`yes` is not a value of `default`: write `true` or `false`"]),
    ("- {id: a, to: x.example, default: off, action: deny}", ["`off` is not a value of `default`"]),
    ("- {id: a, to: x.example, idle_timeout: 10, action: allow}", ["`10`: a duration is a number and a unit"]),
    # what people write by habit is told with where it belongs, and never understood
    ("- {id: a, to: x.example, method: GET, action: allow}", ["`method` is not a key of a rule; did you mean `methods` under `http`?"]),
    ("- {id: a, to: x.example, paths: /a, action: allow}", ["`paths` is not a key of a rule; did you mean `paths` under `http`?"]),
    ("- {id: a, host: x.example, verdict: allow}", ["`host` is not a key of a rule; did you mean `to`?", "`verdict` is not a key of a rule; did you mean `action`?"]),
    ("- {id: a, to: x.example, tasks: web, rate-limit: 3, action: allow}", ["did you mean `tasks` under `for`?", "did you mean `limits`?"]),
    ("- {id: a, to: x.example, exclude: y.x.example, actoin: allow, action: allow}", ["did you mean `except`?", "did you mean `action`?"]),
    ("- {id: a, to: x.example, git: {repos: a/b, push: true}, action: allow}", ["`true` is no ref: every ref is `refs/**`"]),
    ("- {id: a, to: x.example, idle_timeout: 0s, action: allow}", ["`0s` is not between 1s and 7d"]),
    ("- {id: a, to: x.example, idle_timeout: 99d, action: allow}", ["not between"]),
    ("- {id: a, to: x.example, why: [a], action: allow}", ["`why` must be one word or text, not a list"]),
    ("- {id: a, to: x.example, why: '" + "x" * 5000 + "', action: allow}", ["`why` is longer than 4096 characters"]),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), WRONG)
def test_malformed_rule_is_an_error(rules, expected):
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
    ("version: 1\nsettings: {mode: audti}", "`audti` is not a value of `mode`, which is one of enforce, audit; did you mean `audit`?"),
    ("version: 1\nsettings: {tls: none}", "one of inspect, splice"),
    ("version: 1\nsettings: {on_block: 403}", "one of reset, explain, dns_refused"),
    ("version: 1\nsettings: {on_journal_failure: ignore}", "one of block, continue"),
    ("version: 1\nsettings: {dns_pool: 10.0.0.0/25}", "at least a /24"),
    ("version: 1\nsettings: {dns_pool: 'fd00::/8'}", "must be an IPv4 network"),
    ("version: 1\nsettings: {dns_pool: 127.0.0.0/8}", "overlaps `127.0.0.0/8` (loopback)"),
    ("version: 1\nsettings: {dns_pool: 0.0.0.0/0}", "overlaps"),
    ("version: 1\nsettings: {dns_pool: 240.0.0.0/8}", "overlaps"),
    ("version: 1\nsettings: {dns_pool: 169.254.0.0/16}", "overlaps"),
    ("version: 1\nmode: audit", "`mode` is not a key of a rule file; did you mean `mode` under `settings`?"),
    ("version: 1\nsettings: {idle_timeout: soon}", "a duration is a number and a unit"),
    ("version: 1\ninclude: web.yaml", "`include` must be a list"),
    ("version: 1\ninclude: [web.yaml]", "an `include` names the kind: write `{file: web.yaml}`"),
    ("version: 1\nallow: [x.example]", "did you mean a rule with `action: allow` under `rules`?"),
    ("version: 1\nblocklist: [x.example]", "did you mean a rule with `action: deny` under `rules`?"),
    ("version: 1\nrules: [{id: a, to: x.example, action: deny, allow: x.example}]", "`allow` is not a key of a rule; did you mean `action: allow`, and whatever it is about under `to`?"),
    ("version: 1\ninclude: [{}]", "an `include` needs `file`"),
    ("version: 1\ntests: [{attempt: 'x.example:443'}]", "a test needs `expect`"),
    ("version: 1\ntests: [{expect: allow}]", "a test needs `attempt`"),
    ("version: 1\ntests: [{attempt: foo, expect: deny}]", "needs a port"),
    ("version: 1\ntests: [{attempt: 'GET ftp://x', expect: deny}]", "is not an attempt"),
    ("version: 1\ntests: [{attempt: 'git pull https://x/r', expect: deny}]", "is not a git attempt; one looks like `git fetch https://host/repository`"),
    ("version: 1\ntests: [{attempt: 'git push https://x/r', expect: deny}]", "is not a git attempt"),
    ("version: 1\ntests: [{attempt: 'git push https://x/r main', expect: deny}]", "did you mean `refs/heads/main`?"),
    ("version: 1\ntests: [{attempt: 'git push git@x:r refs/heads/main', expect: deny}]", "over SSH it is `tcp host:22`"),
    ("version: 1\ntests: [{attempt: 'https://x.example/a b', expect: deny}]", "a space in a URL is written `%20`"),
    ("version: 1\ntests: [{attempt: x.example/a, expect: deny}]", "is not an attempt; did you mean `https://x.example/a`?"),
    ("version: 1\ntests: [{attempt: 'git push https://x refs/heads/a', expect: deny}]", "names no repository"),
    ("version: 1\ntests: [{attempt: 'dns x.example', expect: deny}]", "is not a lookup; one looks like `dns TXT example.com`"),
    ("version: 1\ntests: [{attempt: 'tcp x.example:1', expect: deny, body: true}]", "`body` is for requests, and this attempt is not one"),
    ("version: 1\ntests: [{attempt: 'tcp x.example:1', expect: deny, at: 2027-13-01}]", "`2027-13-01` is not a day of the calendar"),
    ("version: 1\ntests: [{attempt: 'tcp x.example:1', expect: deny, labels: [a]}]", "`labels` is a mapping of names to values"),
    ("version: 1\nlayer: top", "`top` is not a value of `layer`, which is one of ceiling, mandatory"),
    ("version: 1\nsettings: {upstream: proxy:3128}", "`proxy:3128` is no proxy; one is written like `http://proxy.corp.example:3128`"),
    ("version: 1\nsettings: {upstream: 'https://proxy:3128'}", "TLS to the proxy itself is not supported"),
    ("version: 1\nsettings: {upstream: 'http://proxy:0'}", "is no proxy"),
    ("version: 1\nsettings: {upstream: 'http://proxy:65536'}", "is no proxy"),
    ("version: 1\nsettings: {upstream: 'http://proxy'}", "is no proxy"),
    ("version: 1\nsettings: {upstream: 'http://proxy:3128/path'}", "is no proxy"),
    ("version: 1\nsettings: {upstream: 'http://pro xy:3128'}", "`pro xy`"),
    ("version: 1\nsettings: {upstream: 'socks4://proxy:1080'}", "is no proxy"),
    ("version: 1\nsettings: {upstream_auth: /etc/exeat/proxy}", "`upstream_auth` needs `upstream`, the proxy that it is for"),
    ("version: 1\nsettings: {upstream_except: a.example}", "`upstream_except` needs `upstream`, the proxy that it is for"),
    ("version: 1\nsettings: {upstream: 'http://proxy:1', upstream_auth: proxy}", "`proxy` must be a whole path"),
    ("version: 1\nsettings: {upstream: 'http://proxy:1', upstream_except: []}", "`upstream_except` is empty"),
    ("version: 1\nsettings: {upstream: 'http://proxy:1', upstream_except: '*'}", "`*` would send nothing through the proxy"),
    ("version: 1\nsettings: {upstream: 'http://proxy:1', upstream_except: 10.1.2.3/8}", "has bits set behind its prefix"),
    ("version: 1\nsettings: {upstream_ca: ca.pem}", "`ca.pem` must be a whole path, as in `/etc/corp/ca.pem`"),
    ("version: 1\ntests: [{attempt: '::1:443', expect: deny}]", "put an IPv6 address in brackets"),
    ("version: 1\ntests: [{attempt: 'GET https://u:p@x/', expect: deny}]", "credentials"),
    ("[]", "a rule file must be a mapping"),
    ("hello", "a rule file must be a mapping"),
    ("", "the file is empty"),
    ("# nothing", "the file is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "part"), HEADS)
def test_malformed_head_is_an_error(text, part, tmp_path):
    from rules.loading.load import read
    from rules.problems import RuleFileError

    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(RuleFileError) as error:
        read([tmp_path / "t.yaml"])
    assert len(error.value.problems) == 1
    assert part in str(error.value)


WARNED = [
    ("- {id: a, to: '*.github.io', action: allow}", "anyone can get a name under `github.io`"),
    ("- {id: a, to: '*.s3.amazonaws.com', action: flag}", "anyone can get a name under `s3.amazonaws.com`"),
    ("- {id: a, to: '**.amazonaws.com', action: allow}", "anyone can get a name under `amazonaws.com`"),
    ("- {id: a, to: 0.0.0.0/0, action: allow}", "`0.0.0.0/0` allows only its public addresses"),
    ("- {id: a, to: x.example, resolves_to: 8.0.0.0/6, action: allow}", "list `10.0.0.0/8` by itself"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "part"), WARNED)
def test_rule_wider_than_it_looks_is_warned_about(rules, part):
    [warning] = loaded(rules).warnings
    assert part in warning.message
    assert (warning.line, warning.file[-6:]) == (5, "t.yaml")


QUIET = ["'*.com', action: deny", "'*.com', action: ask", "'*.github.io', action: deny", "'*.example.com', action: allow", "'*', action: allow", "'*.corp', action: allow", "'*.city.kawasaki.jp', action: allow", "0.0.0.0/0, action: deny", "169.254.0.0/16, action: deny", "10.0.0.0/8, action: allow", "169.254.169.254, action: allow"]  # fmt: skip


@pytest.mark.parametrize("rule", QUIET)
def test_deny_and_ask_rules_may_be_wide(rule):
    assert loaded(f"- {{id: a, to: {rule}}}").warnings == ()


def test_all_problems_are_reported_at_once():
    rules = "- {id: a, to: ['*.com', a..b, '*.org'], ports: [22, 23], action: allow, git: x}\n- {id: b, tu: x, action: deni}"
    assert len(problems(rules)) == 9


def test_scalars_are_read_as_text():
    asked = policy("- {id: off, to: [007.example, 127.1, 1e3.example, on.example, yes, 1.2.3.4], action: deny}", "")
    assert asked.rule_ids == ("t:off",)
    [rule] = asked.rules
    assert [name.text for name in rule.names] == ["007.example", "1e3.example", "on.example", "yes"]
    assert [str(network) for network in rule.networks] == ["127.0.0.1/32", "1.2.3.4/32"]


def test_rule_is_parsed_into_its_fields():
    head = "settings: {mode: audit, tls: splice, dns: real, dns_pool: 10.64.0.0/16, on_block: dns_refused, idle_timeout: 90s}"
    asked = policy(f"- {{{OK}}}\n- {{id: d, to: x.example, action: deny}}", head)
    settings = asked.settings
    assert (settings.mode, settings.tls, settings.dns, settings.on_block) == (Mode.AUDIT, TlsMode.SPLICE, DnsMode.REAL, OnBlock.DNS_REFUSED)  # fmt: skip
    assert (str(settings.dns_pool), settings.idle_timeout) == ("10.64.0.0/16", 90.0)
    allow, deny = asked.rules
    assert [str(ports) for ports in allow.ports or ()] == ["443/tls"]
    assert deny.ports is None
    assert allow.tls is TlsMode.SPLICE


def test_durations_and_ids_are_parsed():
    assert [parse_duration(text) for text in ("1s", "10m", "2h", "7d")] == [1.0, 600.0, 7200.0, 604800.0]
    assert [make_slug(text) for text in ("Web Team", "--", "ü", "x" * 100)] == ["web-team", "rules", "rules", "x" * 63]
