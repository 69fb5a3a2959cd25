"""Git rules by repository, ref and change, beside rules about plain HTTP requests."""

import pytest

from rules.attempt import Attempt, GitRequest, GitService, Protocol, RefChange, Request
from rules.loading.cases import parse_attempt
from rules.names import HostName
from tests.rules.test_globs import calls
from tests.rules.writing import decide, policy, told

H = "https://git.example"
ALL = "- {id: all, to: git.example, action: allow}\n"


def git(says, action="allow", ident="g", more=""):
    return f"- {{id: {ident}, to: git.example, git: {says}, action: {action}}}\n{more}"


FETCH = "{repos: 'acme/*', fetch: true}"
PUSH = "{repos: 'acme/*', push: ['refs/heads/**']}"
MAIN = "{repos: 'acme/*', push: refs/heads/main}"
PATHS = "- {id: p, to: git.example, http: {methods: POST, paths: [/acme/**]}, action: allow}\n"

ROWS = [
    # repositories
    (git(FETCH), f"git fetch {H}/acme/web", "allow rule t:g"),
    (git(FETCH), f"git fetch {H}/acme/web.git", "allow rule t:g"),
    (git(FETCH), f"git fetch {H}/acme/web/", "allow rule t:g"),
    (git(FETCH), f"git fetch {H}/acme/a/b", "deny no_rule"),
    (git(FETCH), f"git fetch {H}/other/web", "deny no_rule"),
    (git(FETCH), f"git fetch {H}/Acme/web", "deny no_rule"),
    (git(FETCH), f"git fetch {H}/acme/we%62", "allow rule t:g"),
    (git(FETCH), f"git fetch {H}/acme%2Fweb", "deny no_rule"),  # servers differ about what that is
    (git(FETCH), f"git fetch {H}/acme/../other", "deny ambiguous_path"),
    (git("{repos: acme/web.git, fetch: true}"), f"git fetch {H}/acme/web", "allow rule t:g"),
    (git("{repos: '**', fetch: true}"), f"git fetch {H}/a/b/c", "allow rule t:g"),
    (git("{repos: 'acme/w*', fetch: true}"), f"git fetch {H}/acme/web", "allow rule t:g"),
    (git("{repos: [x/y, acme/web], fetch: true}"), f"git fetch {H}/acme/web", "allow rule t:g"),
    # asks and denies compare without case
    (git(FETCH, "deny", more=ALL), f"git fetch {H}/ACME/Web.git", "deny rule t:g"),
    (git(FETCH, "deny", more=ALL), f"git fetch {H}/acme%2Fweb", "deny rule t:g"),
    (git(FETCH, "deny", more=ALL), f"git fetch {H}/other/web", "allow rule t:all"),
    (git("{repos: ACME/web, fetch: true}", "ask", more=ALL), f"git fetch {H}/acme/WEB", "ask approval_unavailable t:g"),
    (git(MAIN, "deny", more=ALL), f"git push {H}/acme/web refs/heads/MAIN", "deny rule t:g"),
    (git(FETCH, "flag", more=ALL), f"git fetch {H}/Acme/web", "flag rule t:all,t:g"),
    (git(FETCH, "flag"), f"git fetch {H}/Acme/web", "deny no_rule"),
    # `.git` in whatever spelling
    (git(FETCH, "deny", more=ALL), f"git fetch {H}/acme/web%2Egit", "deny rule t:g"),
    (git(FETCH, "deny", more=ALL), f"git fetch {H}/acme/web.GIT", "deny rule t:g"),
    (git("{repos: acme/web%2Egit, fetch: true}", "deny", more=ALL), f"git fetch {H}/acme/web", "deny rule t:g"),
    (git(FETCH), f"git fetch {H}/acme/web%2Egit", "allow rule t:g"),
    (git("{repos: acme/web, fetch: true}"), f"git fetch {H}/acme/web.GIT", "deny no_rule"),
    # services
    (git(FETCH), f"git push {H}/acme/web refs/heads/x", "deny no_rule"),
    (git(PUSH), f"git fetch {H}/acme/web", "deny no_rule"),
    (git("{repos: 'acme/*', fetch: true, push: 'refs/**'}"), f"git fetch {H}/acme/web", "allow rule t:g"),
    (git("{repos: 'acme/*', fetch: true, push: 'refs/**'}"), f"git push {H}/acme/web refs/tags/v1", "allow rule t:g"),
    # refs
    (git(PUSH), f"git push {H}/acme/web refs/heads/x", "allow rule t:g"),
    (git(PUSH), f"git push {H}/acme/web refs/heads/a/b", "allow rule t:g"),
    (git(PUSH), f"git push {H}/acme/web refs/tags/v1", "deny no_rule"),
    (git(PUSH), f"git push {H}/acme/web refs/heads", "allow rule t:g"),  # `**` is none too; git has no such ref
    (git("{repos: 'acme/*', push: refs/heads/*}"), f"git push {H}/acme/web refs/heads/a/b", "deny no_rule"),
    (git("{repos: 'acme/*', push: 'refs/heads/rel-*'}"), f"git push {H}/acme/web refs/heads/rel-1", "allow rule t:g"),
    (git(MAIN), f"git push {H}/acme/web refs/heads/main", "allow rule t:g"),
    (git(MAIN), f"git push {H}/acme/web refs/heads/Main", "deny no_rule"),
    (git(PUSH), f"git push {H}/acme/web refs/heads//x", "deny no_rule"),
    (git(PUSH), f"git push {H}/acme/web refs/heads/../tags/x", "deny no_rule"),
    (git(PUSH), f"git push {H}/acme/web refs/heads/x.lock", "deny no_rule"),
    (git(PUSH, "deny", more=ALL), f"git push {H}/acme/web refs/heads//x", "deny rule t:g"),
    # changes
    (git(PUSH), f"git push {H}/acme/web refs/heads/x create", "allow rule t:g"),
    (git(PUSH), f"git push {H}/acme/web refs/heads/x delete", "deny no_rule"),
    (git("{repos: 'acme/*', push: 'refs/**', changes: delete}"), f"git push {H}/acme/web refs/heads/x delete", "allow rule t:g"),
    (git("{repos: 'acme/*', push: 'refs/**', changes: create}"), f"git push {H}/acme/web refs/heads/x", "deny no_rule"),
    (git(PUSH, "flag"), f"git push {H}/acme/web refs/heads/x delete", "deny no_rule"),
    (git(PUSH, "deny", more=ALL), f"git push {H}/acme/web refs/heads/x delete", "deny rule t:g"),
    (git(PUSH, "ask", more=ALL), f"git push {H}/acme/web refs/heads/x delete", "ask approval_unavailable t:g"),
    (git("{repos: 'acme/*', push: 'refs/**', changes: delete}", "deny", more=ALL), f"git push {H}/acme/web refs/heads/x", "allow rule t:all"),
    (git("{repos: 'acme/*', push: 'refs/**', changes: delete}", "deny", more=ALL), f"git push {H}/acme/web refs/heads/x delete", "deny rule t:g"),
    # the strictest wins
    (git(PUSH, "flag", "f", git(MAIN, "ask")), f"git push {H}/acme/web refs/heads/main", "ask approval_unavailable t:g"),
    (git(PUSH, "flag", "f", git(MAIN, "ask")), f"git push {H}/acme/web refs/heads/x", "flag rule t:f"),
    # a git request is a request
    (PATHS, f"git push {H}/acme/web refs/heads/x", "allow rule t:p"),
    (PATHS, f"git push {H}/other/web refs/heads/x", "deny no_rule"),
    (PATHS + git(MAIN, "deny"), f"git push {H}/acme/web refs/heads/main", "deny rule t:g"),
    ("- {id: p, to: git.example, http: {methods: POST}, action: allow}", f"git push {H}/acme/web refs/heads/x", "deny no_rule"),
    ("- {id: p, to: git.example, http: {methods: POST}, action: allow}", f"POST {H}/acme/web/git-receive-pack", "deny no_rule"),
    ("- {id: p, to: git.example, http: {methods: POST}, action: allow}", f"git fetch {H}/acme/web", "allow rule t:p"),
    ("- {id: p, to: git.example, http: {methods: POST}, action: allow}", f"POST {H}/acme/web", "allow rule t:p"),
    ("- {id: p, to: git.example, http: {methods: POST, paths: /**}, action: allow}", f"git push {H}/a/b refs/heads/x", "allow rule t:p"),
    ("- {id: p, to: git.example, http: {methods: POST}, action: deny}\n" + ALL, f"git push {H}/a/b refs/heads/x", "deny rule t:p"),
    (ALL, f"git push {H}/acme/web refs/heads/x", "allow rule t:all"),
    (git(PUSH, more="- {id: d, to: git.example, http: {paths: /acme/web/**}, action: deny}"), f"git push {H}/acme/web refs/heads/x", "deny rule t:d"),
    (git(PUSH, more="- {id: d, to: git.example, http: {paths: /acme/web/**}, action: deny}"), f"git push {H}/acme/api refs/heads/x", "allow rule t:g"),
    (git(PUSH), f"POST {H}/acme/web", "deny no_rule"),
    (git(PUSH), f"GET {H}/acme/web/raw/main/a", "deny no_rule"),
    # what looks like git, and nobody read it as such
    (git(PUSH), f"POST {H}/acme/web.git/git-receive-pack", "deny no_rule"),
    (git(FETCH), f"GET {H}/acme/web.git/info/refs?service=git-upload-pack", "deny no_rule"),
    (git(FETCH, "deny", more=ALL), f"POST {H}/acme/web.git/git-upload-pack", "deny rule t:g"),
    (git(MAIN, "deny", more=ALL), f"POST {H}/acme/web.git/git-receive-pack", "deny rule t:g"),
    (git(MAIN, "deny", more=ALL), f"GET {H}/acme/web.git/info/refs", "deny rule t:g"),
    (git(MAIN, "flag", more=ALL), f"POST {H}/acme/web.git/git-receive-pack", "flag rule t:all,t:g"),
    # exemptions
    ("- {id: d, to: git.example, except: [{git: {repos: 'acme/*', fetch: true}}], action: deny}\n" + ALL, f"git fetch {H}/acme/web", "allow rule t:all"),
    ("- {id: d, to: git.example, except: [{git: {repos: 'acme/*', fetch: true}}], action: deny}\n" + ALL, f"git fetch {H}/Acme/web", "deny rule t:d"),
    ("- {id: d, to: git.example, except: [{git: {repos: 'acme/*', push: 'refs/**'}}], action: deny}\n" + ALL, f"git push {H}/acme/web refs/heads/x delete", "deny rule t:d"),
    ("- {id: a, to: git.example, except: [{git: {repos: 'acme/*', push: 'refs/**'}}], action: allow}", f"git push {H}/ACME/web refs/heads/x delete", "deny no_rule"),
    ("- {id: a, to: git.example, except: [{git: {repos: 'acme/*', push: 'refs/**'}}], action: allow}", f"git fetch {H}/acme/web", "allow rule t:a"),
    # both have to cover it
    ("- {id: b, to: git.example, http: {paths: /acme/web/**}, git: {repos: 'acme/*', push: 'refs/**'}, action: allow}", f"git push {H}/acme/web refs/heads/x", "allow rule t:b"),
    ("- {id: b, to: git.example, http: {paths: /acme/web/**}, git: {repos: 'acme/*', push: 'refs/**'}, action: allow}", f"git push {H}/acme/api refs/heads/x", "deny no_rule"),
    # raw TCP could be a push as well
    ("- {id: raw, to: git.example, ports: 443/tcp, action: allow}\n" + git(MAIN, "deny"), "tcp git.example:443", "deny rule t:g"),
    (git(PUSH), "tcp git.example:443", "deny no_rule"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "expected"), ROWS)
def test_git_requests_are_decided_by_the_rules(rules, attempt, expected):
    got = decide(rules, attempt)
    assert told(got._replace(rules=tuple(sorted(got.rules)))) in {expected, expected.replace("t:all,t:g", "t:g")}


def begun(rules, repo="acme/web", service=GitService.PUSH):
    name = {GitService.PUSH: "git-receive-pack", GitService.FETCH: "git-upload-pack"}[service]
    request = Request(
        "GET", f"/{repo}/info/refs?service={name}", (("host", "git.example"),), git=GitRequest(service, repo)
    )
    return told(policy(rules).decide(Attempt(Protocol.TLS, HostName("git.example"), 443, request)))


BEGUN = [
    # as far as any push to the repository could go
    (git(PUSH), "acme/web", "allow rule t:g"),
    (git(PUSH), "other/web", "deny no_rule"),
    (git(MAIN), "acme/web", "allow rule t:g"),
    (git("{repos: 'acme/*', push: 'refs/**', changes: delete}"), "acme/web", "allow rule t:g"),
    (git(FETCH), "acme/web", "deny no_rule"),
    (git(MAIN, "deny", more=ALL), "acme/web", "allow rule t:all"),
    (git("{repos: 'acme/*', push: 'refs/heads/**'}", "deny", more=ALL), "acme/web", "allow rule t:all"),  # a tag could be pushed
    (git("{repos: 'acme/*', push: 'refs/**'}", "deny", more=ALL), "acme/web", "deny rule t:g"),
    (git("{repos: 'acme/*', push: 'refs/**', changes: [create, update]}", "deny", more=ALL), "acme/web", "allow rule t:all"),
    (git(PUSH, more=git(PUSH, "deny", "d")), "acme/web", "deny rule t:d"),
    (git(PUSH, more=git(MAIN, "deny", "d")), "acme/web", "allow rule t:g"),
    (git(MAIN, more=git(PUSH, "deny", "d")), "acme/web", "deny rule t:d"),
    (git(PUSH, "flag", more=git(MAIN, "ask", "q")), "acme/web", "flag rule t:g"),
    (git(MAIN, "ask"), "acme/web", "ask approval_unavailable t:g"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "repo", "expected"), BEGUN)
def test_first_request_of_a_push_is_decided_by_repository(rules, repo, expected):
    assert begun(rules, repo) == expected


CONNECTIONS = [
    (git(FETCH), "allow rule t:g"),
    (git(PUSH), "allow rule t:g"),
    (git(PUSH, more=git("{repos: '**', push: 'refs/**'}", "deny", "d")), "deny rule t:d"),
    (git(FETCH, more=git("{repos: 'acme/*', fetch: true}", "deny", "d")), "deny rule t:d"),
    (git(FETCH, more=git("{repos: 'acme/web', fetch: true}", "deny", "d")), "allow rule t:g"),
    (git(FETCH, more="- {id: d, to: git.example, http: {methods: POST}, action: deny}"), "allow rule t:g"),
    (git(FETCH, more="- {id: d, to: git.example, http: {paths: /acme/**}, action: deny}"), "deny rule t:d"),
    (git(MAIN, "deny"), "deny no_rule"),
    (git(MAIN, "deny", more=ALL), "allow rule t:all"),
    (git(PUSH, "flag", more=git(MAIN, "ask", "q")), "flag rule t:g"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), CONNECTIONS)
def test_connection_is_allowed_if_a_git_request_could_pass(rules, expected):
    decision = decide(rules, "tls git.example:443")
    assert (told(decision), decision.inspect) == (expected, True)


def test_decision_says_whether_git_is_parsed():
    asked = policy(
        git(FETCH)
        + "- {id: x, to: x.example, except: [{git: {repos: '**', fetch: true}}], action: deny}\n- {id: y, to: y.example, http: {methods: GET}, action: allow}"
    )
    assert [asked.looks_at(HostName(name), 443).git for name in ("git.example", "x.example", "y.example")] == [
        True,
        True,
        False,
    ]
    assert asked.needs.inspection


def test_push_of_unknown_content_is_every_change():
    def pushed(rules):
        request = Request(
            "POST", "/acme/web/git-receive-pack", body=True, git=GitRequest(GitService.PUSH, "acme/web", "refs/heads/x")
        )
        return told(policy(rules).decide(Attempt(Protocol.TLS, HostName("git.example"), 443, request)))

    assert pushed(git(PUSH)) == "deny no_rule"
    assert pushed(git("{repos: 'acme/*', push: 'refs/**', changes: delete}", "deny", more=ALL)) == "deny rule t:g"


def test_denied_push_names_repository_ref_and_change():
    asked = policy(git("{repos: 'acme/*', push: 'refs/heads/x/**'}"))
    for words, got in (
        ("push https://git.example/acme/web refs/heads/main", "push acme/web refs/heads/main (update)"),
        ("push https://git.example/acme/web refs/heads/x/y delete", "push acme/web refs/heads/x/y (delete)"),
        ("fetch https://git.example/acme/web", "fetch acme/web"),
    ):  # by one policy: a hint that is kept for one ref is not told of another
        near = parse_attempt(f"git {words}").decide(asked).nearest
        assert near == ("t:g", "git", "push refs/heads/x/** (create/update) of acme/*", got)


def test_push_changes_are_create_update_delete():
    assert {change.value for change in RefChange} == {"create", "update", "delete"}


def crowd(number):
    return policy(
        "".join(git(f"{{repos: 'acme{n}/*', fetch: true, push: 'refs/**'}}", ident=f"g{n}") for n in range(number))
    )


def test_git_decision_cost_is_independent_of_repository_count():
    few, many = crowd(10), crowd(500)
    for repo in ("acme7/web", "nobody/web"):
        for found in (
            GitRequest(GitService.FETCH, repo),
            GitRequest(GitService.PUSH, repo, "refs/heads/x", RefChange.UPDATE),
        ):
            request = Request("POST", f"/{repo}/git-upload-pack", body=True, git=found)
            attempt = Attempt(Protocol.TLS, HostName("git.example"), 443, request)
            assert few.decide(attempt).reason == many.decide(attempt).reason
            assert calls(many.decide, attempt) == calls(few.decide, attempt)


def test_many_repositories_leave_caches_bounded():
    asked = crowd(3)
    for n in range(3000):
        found = GitRequest(GitService.FETCH, f"acme1/r{n}")
        asked.decide(
            Attempt(
                Protocol.TLS, HostName("git.example"), 443, Request("POST", f"/acme1/r{n}/git-upload-pack", git=found)
            )
        )
    [plan] = asked._index.candidates(HostName("git.example"))._plans.values()
    assert len(plan._gits_known) <= 1024
    assert len(plan._findings) <= 1024
