"""GitHub's command line as it is, against a forge of its own kind: it has a placeholder for its token."""

import os

from tests.lab import Lab

from . import program

REAL = "ghp_" + "r" * 36
RULES = """
version: 1
name: gh
secrets:
  - {{id: forge, from: {{file: {path}}}, as: GH_ENTERPRISE_TOKEN, hosts: www.open.example, in: {{header: authorization}}}}
rules:
  - {{id: forge, to: www.open.example, credential: forge, http: {{methods: [GET, POST], paths: [/echo, /api/graphql]}}, action: allow}}
  - {{id: other, to: other.open.example, action: allow}}
"""
TEMPLATE = """
export GH_HOST="$1" GH_CONFIG_DIR="$PWD/gh" GH_NO_UPDATE_NOTIFIER=1 GH_PROMPT_DISABLED=1
shift; exec "$@"
"""


def gh(*words, host="www.open.example"):
    return ["sh", "-c", TEMPLATE, "sh", host, program("gh"), *words]


def test_gh(world):
    path = world.lab.home(Lab.ORDINARY) / "forge.token"
    path.touch(0o600)
    path.write_text(REAL)
    os.chown(path, Lab.ORDINARY, Lab.ORDINARY)
    tried = world.run(
        gh("api", "https://www.open.example/echo"),
        gh("api", "graphql", "-f", "query=query{viewer{login}}"),
        gh("api", "https://www.open.example/denied"),
        gh("api", "https://other.open.example/echo", host="other.open.example"),
        rules=world.place.rules(RULES.format(path=path), "gh.yaml"),
    )
    rest, graph, denied, other = tried.said
    assert "token ghp_" in rest.out, rest  # what the origin got is as long, and masked with the placeholder
    assert REAL not in rest.out + repr(tried.journal.of())
    assert graph.out.startswith("the lab's origin for www.open.example"), graph
    assert "HTTP 403" in denied.err, denied
    assert "403" in other.err, other
    asked = [
        (each["http"]["method"], each["http"]["path"], each["reason"])
        for each in tried.journal.of(kind="request.decided")
    ]
    assert asked == [
        ("GET", "/echo", "rule"),
        ("POST", "/api/graphql", "rule"),
        ("GET", "/denied", "no_rule"),
        ("GET", "/echo", "secret_misuse"),
    ]
