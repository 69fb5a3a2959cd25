"""Rules with `credential`: a request whose one credential is the placeholder goes out, and nobody else's key does."""

import json

import pytest

from tests.proxy.inspection.secrets_harness import NO_PASSWORD, REAL, SHOWN, basic, bodies, head, place

# a rule with `credential: model-key`, a request, and what is decided
CREDENTIALS = {
    "ours": ([f"Authorization: Bearer {SHOWN}"], "", "passed rule"),
    "none": ([], "", "blocked credential_mismatch"),
    "the attacker's": (["Authorization: Bearer sk-attacker"], "", "blocked credential_mismatch"),
    "another secret of ours": ([basic(b"me:" + NO_PASSWORD)], "", "blocked credential_mismatch"),
    "ours and another key": ([f"Authorization: Bearer {SHOWN}", "X-Api-Key: a"], "", "blocked credential_mismatch"),
    "ours and a proxy's": ([f"Authorization: Bearer {SHOWN}", "Proxy-Authorization: a"], "", "blocked credential_mismatch"),
    "ours and a cookie": ([f"Authorization: Bearer {SHOWN}", "Cookie: a=b"], "", "blocked credential_mismatch"),
    "ours and a token": ([f"Authorization: Bearer {SHOWN}", "PRIVATE-TOKEN: a"], "", "blocked credential_mismatch"),
    "ours and a kind of token": ([f"Authorization: Bearer {SHOWN}", "X-Foo-Access-Token: a"], "", "blocked credential_mismatch"),
    "ours and a parameter": ([f"Authorization: Bearer {SHOWN}"], "?api_key=a", "blocked credential_mismatch"),
    "ours and an escaped one": ([f"Authorization: Bearer {SHOWN}"], "?%61ccess_token=a", "blocked credential_mismatch"),
    "ours and a signature": ([f"Authorization: Bearer {SHOWN}"], "?X-Amz-Signature=a", "blocked credential_mismatch"),
    "ours and a key of Google's kind": ([f"Authorization: Bearer {SHOWN}", "X-Goog-Api-Key: a"], "", "blocked credential_mismatch"),
    "ours and a key of anybody's kind": ([f"Authorization: Bearer {SHOWN}", "DD-APPLICATION-KEY: a"], "", "blocked credential_mismatch"),
    "ours and a key spelled with underscores": ([f"Authorization: Bearer {SHOWN}", "X_Auth_Key: a"], "", "blocked credential_mismatch"),
    "ours and a key spelled with dots": ([f"Authorization: Bearer {SHOWN}", "X.Auth.Key: a"], "", "blocked credential_mismatch"),
    "ours and a key behind a semicolon": ([f"Authorization: Bearer {SHOWN}"], "?q=a;api_key=a", "blocked credential_mismatch"),
    "ours and a key behind a name alone": ([f"Authorization: Bearer {SHOWN}"], "?a;key=a", "blocked credential_mismatch"),
    "ours and a key behind another question mark": ([f"Authorization: Bearer {SHOWN}"], "?a?key=a", "blocked credential_mismatch"),
    "ours and a session": ([f"Authorization: Bearer {SHOWN}", "X-Session-Id: a"], "", "blocked credential_mismatch"),
    "ours and a key for a WebSocket": (
        [f"Authorization: Bearer {SHOWN}", "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-theirs"], "",
        "blocked credential_mismatch",
    ),
    "ours and a user in the URL": ([basic(b"them:theirs"), f"X-Api-Key: {SHOWN}"], "", "blocked credential_mismatch"),
    "ours and another Authorization": ([f"X-Api-Key: {SHOWN}", "Authorization: Bearer theirs"], "", "blocked credential_mismatch"),
    "ours and an access token": ([f"Authorization: Bearer {SHOWN}"], "?access_token=a", "blocked credential_mismatch"),
    "ours and a key in camel case": ([f"Authorization: Bearer {SHOWN}"], "?subscriptionKey=a", "blocked credential_mismatch"),
    "ours and a session in the query": (
        [f"Authorization: Bearer {SHOWN}"], "?session_id=a", "blocked credential_mismatch",
    ),
    "ours and a shared signature": ([f"Authorization: Bearer {SHOWN}"], "?sv=1&sig=a", "blocked credential_mismatch"),
    "ours and a page, a form's mark, a conversation": (
        [f"Authorization: Bearer {SHOWN}", "X-CSRF-Token: a", "Idempotency-Key: a", "session_id: a", "X-Claude-Code-Session-Id: a"],
        "?page_token=a&nextPageToken=b", "passed rule",
    ),
    "ours and other fields": ([f"Authorization: Bearer {SHOWN}", "X-Request-Id: a", "Accept: */*"], "?q=a", "passed rule"),
    "ours and semicolons": ([f"Authorization: Bearer {SHOWN}"], "?q=a;b;token=&c", "passed rule"),
    "ours and an empty parameter": ([f"Authorization: Bearer {SHOWN}"], "?token=", "passed rule"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "query", "told"), CREDENTIALS.values(), ids=CREDENTIALS)
def test_a_rule_for_a_credential_lets_out_nobody_elses(gate, origins, fields, query, told):
    origin = origins.web("good.example")
    answer = place(gate, origin, rule="credential: model-key").ask(head(f"GET /echo{query}", *fields))
    assert " ".join(gate.decided()[0][2:]) == told
    assert len(origin.requests) == (1 if told == "passed rule" else 0)
    if told == "passed rule":
        return
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert problem["nearest"]["wanted"] == "model-key"
    login = len(fields) == 1 and fields[0] == basic(b"me:" + NO_PASSWORD)
    got = "none" if not fields and not query else "login" if login else "another"
    assert problem["nearest"]["got"] == got
    assert (
        problem["detail"]
        == {
            "none": "the request brings no credential",
            "login": "the request brings the placeholder of `login`",
            "another": "the request brings a credential that is not ours, or more than one",
        }[got]
    )


def test_a_forge_s_client_goes_through_a_rule_for_its_token(gate, origins):
    """As GitHub's command line asks: `Authorization: token`, and GraphQL by POST. What a query says isn't looked at."""
    got = []
    origin = origins.script(bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin, rule="credential: model-key")
    query = b'{"query":"query{viewer{login}}","variables":{"token":"theirs"}}'
    kind, length = "Content-Type: application/json; charset=utf-8", f"Content-Length: {len(query)}"
    for token, told in ((SHOWN, b"HTTP/1.1 200"), ("ghp_theirs", b"HTTP/1.1 403")):
        answer = made.ask(head("POST /api/graphql", kind, length, f"Authorization: token {token}"), query)
        assert answer.startswith(told)
    assert got == [query]
    assert f"Authorization: token {REAL.decode()}".encode() in origin.requests[0]


def setting(*cookies):
    def answer(connection, _head):
        fields = b"".join(b"Set-Cookie: %b\r\n" % cookie for cookie in cookies)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n%b\r\n" % fields)

    return answer


# what is sent back beside the placeholder, once `sid=1` and `lb=a=b` were set; and what is decided
COOKIES = [
    ("sid=1; lb=a=b", "passed rule"),
    ("lb=a=b", "passed rule"),
    ("sid=2", "blocked credential_mismatch"),
    ("sid=1; other=1", "blocked credential_mismatch"),
    ("sid", "blocked credential_mismatch"),
    ("sid=1, other=1", "blocked credential_mismatch"),
]


@pytest.mark.parametrize(("cookies", "told"), COOKIES)
def test_cookies_that_were_set_for_a_secret_are_nobody_elses(gate, origins, cookies, told):
    origin = origins.script(setting(b"sid=1; Path=/; HttpOnly", b"lb=a=b"), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin, rule="credential: model-key")
    ours = f"Authorization: Bearer {SHOWN}"
    made.ask(head("GET /echo", ours, "Cookie: sid=1"))  # nobody has set it yet
    made.ask(head("GET /echo", ours))
    made.ask(head("GET /echo", ours, f"Cookie: {cookies}"))
    made.ask(head("GET /echo", f"Cookie: {cookies}"))  # a session alone isn't the secret
    decided = [" ".join(each[2:]) for each in gate.decided()]
    assert decided == ["blocked credential_mismatch", "passed rule", told, "blocked credential_mismatch"]


def test_cookies_that_were_set_for_somebody_else_are_somebody_elses(gate, origins):
    """A login with another key, where another rule lets that out, makes no session of ours."""
    origin = origins.script(setting(b"sid=theirs"), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin, rule="credential: model-key, http: {paths: [/ours]}")
    ours = f"Authorization: Bearer {SHOWN}"
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], credential: model-key, action: allow}},"
        f" {{id: b, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], http: {{paths: [/login]}}, action: allow}}]",
        f"secrets: [{{id: model-key, from: {{env: X}}, as: K, hosts: 'good.example:{origin.port}', in: {{header: authorization}}}}]",
    )
    for fields in (["Authorization: Bearer theirs"], [ours, "X-Api-Key: theirs"], []):
        made.ask(head("GET /login", *fields))
    made.ask(head("GET /echo", ours, "Cookie: sid=theirs"))
    assert [each[2] for each in gate.decided()] == ["passed"] * 3 + ["blocked"]
