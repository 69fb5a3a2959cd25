"""Attempts as rule files and clients write them, and the test cases of rule files."""

import pytest

from enforcer.cli.client_commands import read_attempt
from rules.attempt import Protocol
from rules.loading.cases import parse_attempt, run
from tests.rules.rule_texts import loaded, policy

RULES = (
    "- {id: web, to: x.example, http: {methods: [GET]}, action: allow}\n"
    "- {id: db, to: x.example, ports: [5432/tcp, 8443/tls, 8080/http], action: allow}\n"
    "- {id: bad, to: bad.example, action: deny}\n"
    "- {id: held, to: held.example, action: ask}\n"
)

READ = [
    ("GET https://x.example", Protocol.TLS, "x.example", 443, ("GET", "/")),
    ("GET https://X.Example./a%20b?c#d", Protocol.TLS, "x.example", 443, ("GET", "/a%20b?c")),
    ("GET https://x.example?q", Protocol.TLS, "x.example", 443, ("GET", "/?q")),
    ("PUT HTTP://x.example:8080/a", Protocol.HTTP, "x.example", 8080, ("PUT", "/a")),
    ("GET https://[::1]/", Protocol.TLS, "::1", 443, ("GET", "/")),
    ("GET https://[::1]:8443/", Protocol.TLS, "::1", 8443, ("GET", "/")),
    ("GET https://2130706433/", Protocol.TLS, "127.0.0.1", 443, ("GET", "/")),
    ("tcp x.example:22", Protocol.TCP, "x.example", 22, None),
    ("udp x.example:53", Protocol.UDP, "x.example", 53, None),
    ("tls x.example:443", Protocol.TLS, "x.example", 443, None),
    ("http x.example:80", Protocol.HTTP, "x.example", 80, None),
    ("tcp [::ffff:10.0.0.1]:22", Protocol.TCP, "10.0.0.1", 22, None),
    # what the rules say is spoken there, else what usually is
    ("x.example:443", Protocol.TLS, "x.example", 443, None),
    ("x.example:5432", Protocol.TCP, "x.example", 5432, None),
    ("x.example:8443", Protocol.TLS, "x.example", 8443, None),
    ("x.example:8080", Protocol.HTTP, "x.example", 8080, None),
    ("y.example:80", Protocol.HTTP, "y.example", 80, None),
    ("y.example:8443", Protocol.TCP, "y.example", 8443, None),
]


@pytest.mark.parametrize(("text", "protocol", "target", "port", "request_"), READ)
def test_attempt_of_a_test_case_is_parsed(text, protocol, target, port, request_):
    attempt = parse_attempt(text).attempt(policy(RULES))
    asked = attempt.request and (attempt.request.method, attempt.request.path)
    assert (attempt.protocol, str(attempt.target), attempt.port, asked) == (protocol, target, port, request_)


@pytest.mark.parametrize(
    "text",
    ["", "x.example", "x.example:", "x.example:http", "x.example:0", "x.example:65536", "x.example:-1", "::1:443", "1:2:3", "[::1]", "GET x.example", "GET ftp://x.example/", "GET https://u@x.example/", "GET https://x.example:x/", "GET https://::1/", "dns x.example", "dns A", "dns ! x.example", "git fetch x.example/a", "git fetch https://x.example/", "git push https://x.example/a", "git push https://x.example/a refs/heads/a rewrite", "git clone https://x.example/a", "icmp x.example"],
)  # fmt: skip
def test_malformed_attempt_is_an_error(text):
    with pytest.raises(ValueError, match="`"):
        parse_attempt(text)


TESTED = [
    ("{attempt: 'GET https://x.example/', expect: allow}", ""),
    ("{attempt: 'GET https://x.example/', expect: allow, rule: web}", ""),
    ("{attempt: 'GET https://x.example/', expect: allow, rule: 't:web'}", ""),
    ("{attempt: 'tcp held.example:22', expect: ask, rule: held}", ""),
    ("{attempt: 'GET https://evil%00.example/', expect: deny}", ""),
    ("{attempt: 'GET https://x.example/', expect: deny}", "`GET https://x.example/` should be deny and is allow (rule) by `t:web`"),
    ("{attempt: 'tcp held.example:22', expect: deny}", "should be deny and is ask (approval_unavailable) by `t:held`"),
    ("{attempt: 'GET https://x.example/', expect: allow, rule: db}", "should be decided by `db` and is allow (rule) by `t:web`"),
    ("{attempt: 'GET https://x.example/', expect: allow, rule: wbe}", "there is no rule `wbe`; did you mean `web`?"),
    ("{attempt: 'PUT https://x.example/', expect: allow}", "should be allow and is deny (no_rule)"),
]  # fmt: skip


@pytest.mark.parametrize(("test", "failure"), TESTED)
def test_test_cases_of_a_file_are_run(test, failure):
    files = loaded(f"version: 1\nname: t\nrules:\n{RULES}tests:\n- {test}\n")
    [result] = run(files.policy, files.tests)
    assert failure in result.failure
    assert bool(failure) == bool(result.failure)


COMMANDS = [
    ("curl https://x.example/a?b=c", "GET https://x.example/a?b=c"),
    ("/usr/bin/curl -sSL https://x.example/", "GET https://x.example/"),
    ("curl -X DELETE https://x.example/a", "DELETE https://x.example/a"),
    ("curl -XPUT https://x.example/a", "PUT https://x.example/a"),
    ("curl --request=PATCH https://x.example/a", "PATCH https://x.example/a"),
    ("curl -d a=b https://x.example/a", "POST https://x.example/a"),
    ("curl --data-urlencode 'a=b c' https://x.example/a", "POST https://x.example/a"),
    ("curl --json '{}' -X PUT https://x.example/a", "PUT https://x.example/a"),
    ("curl -T file https://x.example/a", "PUT https://x.example/a"),
    ("curl -I https://x.example/a", "HEAD https://x.example/a"),
    ("curl -O https://x.example/a", "GET https://x.example/a"),
    ("curl -o https://out.example https://x.example/a", "GET https://x.example/a"),
    ("curl -H 'Accept: text/html' 'https://x.example/a'", "GET https://x.example/a"),
    ("curl -x http://proxy.example:1 https://x.example/a", "GET https://x.example/a"),
    ("curl --proxy http://proxy.example:1 https://x.example/a", "GET https://x.example/a"),
    ("curl -e https://from.example https://x.example/a", "GET https://x.example/a"),
    ("curl -sSX POST https://x.example/a", "POST https://x.example/a"),
    ("curl -sd a=b https://x.example/a", "POST https://x.example/a"),
    ("curl -sXPUT https://x.example/a", "PUT https://x.example/a"),
    ("curl -G -d a=b https://x.example/a", "GET https://x.example/a"),
    ("curl --max-redirs 3 --url https://x.example/a", "GET https://x.example/a"),
    ("wget -T 5 -nv https://x.example/a", "GET https://x.example/a"),
    ("wget -d https://x.example/a", "GET https://x.example/a"),
    ("curl x.example/a", "GET http://x.example/a"),
    ("wget -O - https://x.example/a", "GET https://x.example/a"),
    ("wget --method=PUT https://x.example/a", "PUT https://x.example/a"),
    ("wget --post-data=x https://x.example/a", "POST https://x.example/a"),
    ("git clone --depth 1 https://x.example/a/b.git", "git fetch https://x.example/a/b.git"),
    ("git push https://x.example/a/b refs/heads/main", "git push https://x.example/a/b refs/heads/main"),
    ("$ sudo A=b curl -s https://x.example/a", "GET https://x.example/a"),
    ("time wget https://x.example/a", "GET https://x.example/a"),
    ("git clone git@x.example:a/b.git", "tcp x.example:22"),
    ("git clone ssh://git@x.example:2222/a/b.git", "tcp x.example:2222"),
    ("ssh -i key -p 2222 git@x.example mkdir -p 3", "tcp x.example:2222"),
    ("ssh x.example", "tcp x.example:22"),
    ("ssh", "ssh"),
    ("GET https://x.example/a", "GET https://x.example/a"),
    ("tcp x.example:22", "tcp x.example:22"),
]


@pytest.mark.parametrize(("command", "attempt"), COMMANDS)
def test_client_command_becomes_its_attempt(command, attempt):
    assert read_attempt(command) == attempt


@pytest.mark.parametrize("command", ["curl", "curl -s", "curl 'https://x.example"])
def test_client_command_without_a_url_is_an_error(command):
    with pytest.raises(ValueError, match=r"no URL|No closing quotation"):
        read_attempt(command)
