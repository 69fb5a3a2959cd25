"""Git over HTTP: which requests are git's, and which pushes and fetches of real git pass."""

import json
import os
import subprocess

import pytest

from proxy.inspection.stages.git import git_request
from proxy.request.request_head import UnclearError
from proxy.telemetry.descriptions import describe
from proxy.telemetry.encoding import decode
from proxy.telemetry.replay.learner import Learner
from rules.attempt import GitRequest, GitService, RefChange
from rules.verdicts import Reason
from tests.proxy.inspection.clients import require_tool
from tests.proxy.inspection.git_forge import RULES
from tests.support.git_pushes import MAIN

FETCH, PUSH = GitService.FETCH, GitService.PUSH
RECEIVE, UPLOAD = ("application/x-git-receive-pack-request",), ("application/x-git-upload-pack-request",)
TLS_AND_PLAIN = "acme/web"
OBJECT = "objects/ab/" + "c" * 38

GITS = [
    ("GET", "/acme/web.git/info/refs?service=git-upload-pack", (), FETCH),
    ("GET", "/acme/web/info/refs?service=git-upload-pack", (), FETCH),
    ("GET", "/acme/web.git/info/refs?service=git-receive-pack", (), PUSH),
    ("GET", "/acme%2Fweb.git/info/refs?service=git-receive-pack", (), PUSH),
    ("HEAD", "/acme/web.git/info/refs?service=git-receive-pack", (), PUSH),
    ("GET", "/acme/web.git/info/refs?service=git-upload-archive", (), FETCH),
    ("POST", "/acme/web.git/git-upload-pack", UPLOAD, FETCH),
    ("POST", "/acme/web/git-receive-pack", RECEIVE, PUSH),
    ("POST", "/acme/web.git/git-receive-pack", RECEIVE, PUSH),
    ("POST", "/acme/web.git/git-receive-pack/", RECEIVE, PUSH),
    ("POST", "/acme/web.git/%67it-receive-pack", RECEIVE, PUSH),
    ("POST", "/acme/web.git/git%2Dreceive-pack", RECEIVE, PUSH),
    ("POST", "/acme/web.git/git-upload-archive", ("application/x-git-upload-archive-request",), FETCH),
    # the dumb protocol reads files
    ("GET", "/acme/web.git/info/refs", (), FETCH),
    ("GET", "/acme/web.git/HEAD", (), FETCH),
    ("GET", f"/acme/web.git/{OBJECT}", (), FETCH),
    ("GET", f"/acme/web/{OBJECT}", (), FETCH),
    ("GET", "/acme/web.git/objects/info/packs", (), FETCH),
    ("GET", "/acme/web.git/objects/pack/pack-ab.idx", (), FETCH),
]


@pytest.mark.parametrize(("method", "target", "kinds", "service"), GITS)
def test_git_requests_are_recognized(method, target, kinds, service):
    assert git_request(method, target, kinds) == GitRequest(service, TLS_AND_PLAIN)


NOT_GIT = [
    ("GET", "/", ()),
    ("GET", "/acme/web", ()),
    ("GET", "/docs/git-receive-pack", ()),
    ("GET", "/docs/git-receive-pack/index.html", ()),
    ("GET", "/acme/web/blob/HEAD", ()),
    ("GET", "/acme/web/objects/12", ()),
    ("GET", f"/acme/web.git/{OBJECT}?a=b", ()),
    ("POST", "/acme/web.git/info/lfs/objects/batch", ("application/vnd.git-lfs+json",)),
    ("PUT", "/acme/web.git/info/lfs/objects/" + "a" * 64, ("application/octet-stream",)),
    ("POST", "/api/v3/repos/acme/web/git/refs", ("application/json",)),
    ("DELETE", "/repos/acme/web/git/refs/heads/x", ()),
    ("GET", "/acme/../web.git/info/refs", ()),  # which the rules themselves refuse
    ("POST", "/acme/web.git/git-receive-pack%00", RECEIVE),
]


@pytest.mark.parametrize(("method", "target", "kinds"), NOT_GIT)
def test_other_requests_are_not_taken_for_git(method, target, kinds):
    assert git_request(method, target, kinds) is None


PATH, REQUEST = Reason.AMBIGUOUS_PATH, Reason.AMBIGUOUS_REQUEST
REFUSED = [
    # ambiguous paths
    ("POST", "/acme/web.git/./git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/web.git//git-receive-pack", RECEIVE, PATH),
    ("POST", "//acme/web.git/git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/web.git/git-receive-pack;x=1", RECEIVE, PATH),
    ("POST", "/acme/web.git/%2567it-receive-pack", RECEIVE, PATH),
    ("GET", "/acme/web.git;x/info/refs?service=git-upload-pack", (), PATH),
    ("GET", "/acme/./web.git/info/refs?service=git-receive-pack", (), PATH),
    # a server that decodes the path again would cut it there
    ("POST", "/acme/web.git/git-receive-pack%3Fx", RECEIVE, PATH),
    ("POST", "/acme/web.git/git-receive-pack%3Fx", (), PATH),
    ("POST", "/acme/web.git/git-receive-pack%23", (), PATH),
    ("POST", "/acme/web.git/git-receive-pack%253Fx/y", (), PATH),
    ("GET", "/acme/web.git/info/refs%3Fservice=git-receive-pack", (), PATH),
    ("PUT", "/acme/web.git/refs/heads/main%23x", (), REQUEST),
    # no unambiguous repository
    ("POST", "/git-receive-pack", RECEIVE, PATH),
    ("POST", "/.git/git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/.git/git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/web.git.git/git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/web.GIT/git-receive-pack", RECEIVE, PATH),
    ("GET", "/info/refs?service=git-receive-pack", (), PATH),
    # other spellings and positions of the service name
    ("POST", "/acme/web.git/GIT-RECEIVE-PACK", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack.", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack%20", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack/x", RECEIVE, REQUEST),
    # methods and queries
    ("PUT", "/acme/web.git/git-receive-pack", RECEIVE, REQUEST),
    ("post", "/acme/web.git/git-receive-pack", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack?x=1", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack?", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/info/refs?service=git-receive-pack", RECEIVE, REQUEST),
    ("GET", "/acme/web.git/info/refs?service=git-upload-pack&service=git-receive-pack", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?service=git-receive-pack&x=1", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?x=1&service=git-receive-pack", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?service=%67it-receive-pack", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?Service=git-receive-pack", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?service=git-other", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?", (), REQUEST),
    # types
    ("POST", "/acme/web.git/git-receive-pack", (), REQUEST),
    ("POST", "/acme/web.git/git-receive-pack", UPLOAD, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack", ("text/plain",), REQUEST),
    ("POST", "/acme/web.git/git-receive-pack", (*RECEIVE, *RECEIVE), REQUEST),
    ("POST", "/acme/web.git/push", RECEIVE, REQUEST),
    # WebDAV
    ("PUT", "/acme/web.git/refs/heads/main", (), REQUEST),
    ("PUT", "/acme/web/refs/heads/main", (), REQUEST),
    ("MKCOL", "/acme/web.git/refs/heads/", (), REQUEST),
    ("LOCK", "/acme/web.git/refs/heads/main", (), REQUEST),
    ("LOCK", "/acme/web/info/refs", (), REQUEST),
    ("MOVE", f"/acme/web.git/{OBJECT}_opaquelocktoken", (), REQUEST),
    ("PUT", f"/acme/web/{OBJECT}_opaquelocktoken", (), REQUEST),
    ("PROPFIND", "/acme/web.git/refs/", (), REQUEST),
    ("DELETE", "/acme/web.git/refs/heads/main", (), REQUEST),
    ("PUT", "/acme/web.git/packed-refs", (), REQUEST),
    ("PUT", "/acme/web.git/config", (), REQUEST),
]


@pytest.mark.parametrize(("method", "target", "kinds", "reason"), REFUSED)
def test_ambiguous_git_requests_are_refused(method, target, kinds, reason):
    with pytest.raises(UnclearError) as raised:
        git_request(method, target, kinds)
    assert raised.value.reason is reason


# --- real git through the gate ---


GIT_VERSIONS = pytest.mark.parametrize(
    ("version", "http"), [(0, "HTTP/1.1"), (1, "HTTP/1.1"), (2, "HTTP/1.1"), (2, "HTTP/2"), (0, "HTTP/2")]
)


@GIT_VERSIONS
def test_clone_and_fetch_pass(forge, tmp_path, version, http):
    for words in (("clone", "-q", forge.url(), tmp_path / "again"), ("fetch", "-q", "origin"), ("ls-remote",)):
        done = forge.remote(*words, version=version, http=http)
        assert done.returncode == 0, done.stderr
    for words in (("clone", "-q", "--depth=1", forge.url("acme/other"), tmp_path / "shallow"),):
        assert forge.remote(*words, version=version, http=http).returncode == 0
    assert {reason for *_, reason in forge.site.gate.decided()} == {"rule"}


@GIT_VERSIONS
def test_push_of_an_allowed_branch_passes(forge, version, http):
    done = forge.remote("push", "origin", "HEAD:refs/heads/feature/x", version=version, http=http)
    assert done.returncode == 0, done.stderr
    assert forge.refs() == ["refs/heads/feature/x", MAIN]
    assert forge.pushes() == [("passed", "rule", ["t:features"])]


@GIT_VERSIONS
def test_push_that_needs_approval_is_denied_without_a_registry(forge, version, http):
    done = forge.remote("push", "origin", "HEAD:main", version=version, http=http)
    assert done.returncode == 1
    assert "! [remote rejected] HEAD -> main (exeat: a rule requires an approval" in done.stderr
    assert "remote: exeat: verdict deny, reason approval_unavailable, rule t:main" in done.stderr
    assert forge.pushes() == [("blocked", "approval_unavailable", ["t:main"])]


# Pushed refs, the expected decision, and text that git shows
PUSHES = {
    "update": (["feature/old"], "passed rule t:features", ""),
    "force": (["+HEAD~2:refs/heads/feature/old"], "passed rule t:features", ""),
    "delete": ([":refs/heads/feature/old"], "blocked no_rule", "[remote rejected] feature/old (exeat: no rule allows this"),
    "delete of main": ([":main"], "blocked approval_unavailable t:main", "! [remote rejected] main (exeat: a rule requires an approval"),
    "tag": (["HEAD:refs/tags/v1"], "passed rule t:tags", ""),
    "annotated tag": (["v2"], "passed rule t:tags", ""),
    "moved tag": (["+HEAD:refs/tags/v0"], "passed rule t:tags", ""),
    "branch and tag": (["HEAD:refs/heads/feature/x", "v2"], "passed rule t:tags", ""),
    "branch and main": (
        ["HEAD:refs/heads/feature/x", "HEAD:main"],
        "blocked approval_unavailable t:main",
        "! [remote rejected] HEAD -> feature/x (exeat: another ref of this push is refused)",
    ),
    "a branch that no rule covers": (["HEAD:refs/heads/x"], "blocked no_rule", "(exeat: no rule allows this"),
    "a branch in another case": (["HEAD:refs/heads/Main"], "blocked approval_unavailable t:main", "(exeat: a rule requires an approval"),
    "notes": (["HEAD:refs/notes/x"], "blocked no_rule", "(exeat: no rule allows this"),
    "every branch": (["--all"], "blocked approval_unavailable t:main", "(exeat: a rule requires an approval"),
    "mirror": (["--mirror"], "blocked no_rule", "(exeat: a rule requires an approval"),
    "atomic": (["--atomic", "HEAD:refs/heads/feature/x", "HEAD:refs/heads/feature/y"], "passed rule t:features", ""),
    "atomic with main": (["--atomic", "HEAD:refs/heads/feature/x", "HEAD:main"], "blocked approval_unavailable t:main", ""),
    "options": (["-o", "ci.skip", "HEAD:refs/heads/feature/x"], "passed rule t:features", ""),
    "options that ask for more": (
        ["-o", "merge_request.auto_merge", "-o", "ci.skip", "HEAD:refs/heads/feature/x", "v2"],
        "blocked ambiguous_request",
        "remote: exeat: the push has options (`git push -o`)",
    ),
    "options that ask for more, to main": (["-o", "submit", "HEAD:main"], "blocked ambiguous_request", "push without options"),
    "options to main": (["-o", "ci.skip", "HEAD:main"], "blocked approval_unavailable t:main", "exeat:"),
}  # fmt: skip


@pytest.mark.parametrize(("refs", "expected", "shown"), PUSHES.values(), ids=PUSHES)
def test_pushes_are_decided_by_their_refs(forge, refs, expected, shown):
    forge.run_git("tag", "-a", "v2", "-m", "two")
    bare = forge.root / "acme/web.git"
    forge.run_git("push", "-q", bare, "HEAD:refs/heads/feature/old")
    forge.run_git("commit", "-q", "--allow-empty", "-m", "third")
    forge.run_git("-C", bare, "tag", "v0", "main")
    forge.run_git("branch", "feature/old")
    before = forge.refs()
    done = forge.remote("push", "origin", *refs)
    assert [" ".join([outcome, reason, *rules]) for outcome, reason, rules in forge.pushes()] == [expected]
    passed = expected.startswith("passed")
    assert done.returncode == (0 if passed else 1), done.stderr
    assert shown in done.stderr
    assert passed or forge.refs() == before


def test_push_event_lists_each_ref_with_its_change(forge):
    bare = forge.root / "acme/web.git"
    forge.run_git("push", "-q", bare, "HEAD~1:refs/heads/feature/old")
    old, new = forge.run_git("-C", bare, "rev-parse", "feature/old"), forge.run_git("rev-parse", "HEAD")
    refs = ["HEAD:refs/heads/feature/x", "HEAD:refs/heads/feature/old", "HEAD:refs/tags/v9"]
    assert forge.remote("push", "origin", *refs).returncode == 0
    advertisement, push = forge.site.gate.events("request.decided")[-2:]
    assert advertisement["git"] == {"service": "push", "repository": "acme/web"}
    assert (push["verdict"], push["git"]["repository"]) == ("flag", "acme/web")
    assert sorted(push["git"]["refs"]) == [
        f"create refs/heads/feature/x {'0' * 40} {new}",
        f"create refs/tags/v9 {'0' * 40} {new}",
        f"update refs/heads/feature/old {old} {new}",
    ]
    description = describe(decode(json.dumps(push).encode()))
    assert "refs/heads/feature/old, " in description
    assert description.endswith(" to acme/web)")


def test_push_under_log_pattern_records_no_refs_or_paths(forge):
    forge.site.gate.rules(RULES.replace("PORT", str(forge.site.port)).replace("git: {", "log: pattern, git: {"))
    assert forge.remote("push", "origin", "HEAD:refs/heads/feature/x").returncode == 0
    assert forge.remote("push", "origin", "HEAD:main").returncode == 1
    journal = json.dumps(forge.site.gate.events())
    assert "receive-pack" not in journal
    assert "feature/x" not in journal
    assert "acme" not in journal


def test_no_ref_of_a_partly_denied_push_is_changed(forge):
    assert forge.remote("push", "origin", "HEAD:refs/heads/feature/x", "HEAD:main").returncode == 1
    assert forge.refs() == [MAIN]
    assert forge.site.origin.requests[-1].method == "GET"  # of the push itself nothing has left


def test_signed_push_is_decided_by_its_refs(forge, tmp_path):
    require_tool("ssh-keygen")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    signing = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={tmp_path / 'key'}")
    done = forge.remote(*signing, "push", "--signed", "origin", "HEAD:refs/heads/feature/x", "HEAD:refs/tags/v1")
    assert done.returncode == 0, done.stderr
    done = forge.remote(*signing, "push", "--signed", "origin", "HEAD:refs/heads/feature/y", "HEAD:main")
    assert "(exeat: a rule requires an approval" in done.stderr
    assert [reason for _, reason, _ in forge.pushes()] == ["rule", "approval_unavailable"]
    assert forge.refs() == ["refs/heads/feature/x", MAIN, "refs/tags/v1"]


def test_push_from_a_shallow_clone_passes(forge, tmp_path):
    assert forge.remote("clone", "-q", "--depth=1", forge.url(), tmp_path / "shallow").returncode == 0
    forge.work = tmp_path / "shallow"
    forge.run_git("commit", "-q", "--allow-empty", "-m", "more")
    done = forge.remote("push", "origin", "HEAD:refs/heads/feature/x")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("http", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize(("ref", "status"), [("refs/heads/feature/x", 0), (MAIN, 1)])
def test_large_chunked_push_is_decided_by_its_refs(forge, http, ref, status):
    """The pack exceeds http.postBuffer, so git probes with an empty list first and then sends chunks."""
    (forge.work / "big").write_bytes(os.urandom(5_000_000))
    forge.run_git("add", "big")
    forge.run_git("commit", "-q", "-m", "big")
    done = forge.remote("push", "origin", f"HEAD:{ref}", http=http)
    assert done.returncode == status, done.stderr
    last = ("passed", "rule", ["t:features"]) if not status else ("blocked", "approval_unavailable", ["t:main"])
    assert forge.pushes()[-1] == last
    assert status == 0 or "(exeat: a rule requires an approval" in done.stderr


@pytest.mark.parametrize(
    "words", [("push", "origin", "HEAD:refs/heads/feature/x"), ("fetch", "origin")], ids=["push", "fetch"]
)
def test_push_and_fetch_of_another_repository_are_denied(forge, words):
    forge.run_git("remote", "set-url", "origin", forge.url("evil/web.git"))
    done = forge.remote(*words)
    assert done.returncode == 128
    assert "remote: exeat: no rule allows this" in done.stderr
    assert forge.site.origin.requests == []


def test_push_is_denied_at_its_advertisement_where_only_fetch_is_allowed(forge, gate):
    """Where no push could pass, git stops at the advertisement."""
    rules = RULES.replace("PORT", str(forge.site.port)).splitlines()
    gate.rules("\n".join([*rules[:3], "]"]))
    assert forge.remote("fetch", "origin").returncode == 0
    done = forge.remote("push", "origin", "HEAD:refs/heads/feature/x")
    assert done.returncode == 128
    assert "remote: exeat: no rule allows this" in done.stderr
    assert [e for e in forge.site.origin.requests if "receive" in e.target] == []


PLAIN = (
    "[{id: all, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/tls], action: allow, "
    "http: {methods: [GET, POST], paths: ['/**'], body: true}}]"
)


def use_plain_rules(forge, gate, mode="audit"):
    gate.rules(PLAIN.replace("PORT", str(forge.site.port)), f"settings: {{mode: {mode}}}")


@pytest.mark.parametrize("http", ["HTTP/1.1", "HTTP/2"])
def test_audit_mode_records_git_requests_for_learn(forge, gate, http):
    """Without the refs `exeat learn` would draft a rule that allows every push."""
    use_plain_rules(forge, gate)
    done = forge.remote("push", "-o", "ci.skip", "origin", "HEAD:refs/heads/feature/x", http=http)
    assert done.returncode == 0, done.stderr
    assert forge.remote("fetch", "origin", http=http).returncode == 0
    assert "refs/heads/feature/x" in forge.refs()
    learner = Learner()
    for event in gate.events():
        learner.take(decode(json.dumps(event).replace("127.0.0.", "1.2.3.").encode()))  # no rule opens the loopback
    drafted = learner.result()
    pushes_and_fetches = {
        (each.git.change, each.git.repos, each.git.refs) for each in drafted.drafts if each.git is not None
    }
    assert pushes_and_fetches == {
        (None, ("acme/web",), ()),
        (RefChange.CREATE, ("acme/web",), ("refs/heads/feature/x",)),
    }
    assert [each.paths for each in drafted.drafts if each.git is None] == []


def test_push_is_not_read_without_audit_mode_or_git_rules(forge, gate):
    use_plain_rules(forge, gate, mode="enforce")
    assert forge.remote("push", "origin", "HEAD:refs/heads/feature/x").returncode == 0
    assert not [event for event in gate.events("request.decided") if "git" in event]
