"""Git in a sandbox: fetches and pushes are decided by repository and ref, and git shows the reason."""

import json
import subprocess

import pytest

from .attempt_network import FORGE, dns_names
from .lab_runner import PYTHON, only_as_ordinary_user

pytestmark = only_as_ordinary_user

RULES = f"""
version: 1
name: git
rules:
  - {{id: read, to: {FORGE}, git: {{repos: ["acme/*"], fetch: true}}, action: allow}}
  - {{id: features, to: {FORGE}, git: {{repos: ["acme/*"], push: ["refs/heads/feature/**"]}}, action: allow}}
  - {{id: tags, to: {FORGE}, git: {{repos: ["acme/*"], push: ["refs/tags/**"], changes: create}}, action: flag}}
  - {{id: main, to: {FORGE}, git: {{repos: ["acme/*"], push: [refs/heads/main]}}, action: ask, why: "main is released"}}
tests:
  - {{attempt: "git fetch https://{FORGE}/acme/web", expect: allow, rule: read}}
  - {{attempt: "git push https://{FORGE}/acme/web refs/heads/feature/x", expect: allow, rule: features}}
  - {{attempt: "git push https://{FORGE}/acme/web refs/heads/main", expect: ask, rule: main}}
"""
URL = f"https://{FORGE}"
NO_APPROVAL = "(exeat: a rule requires an approval, and no approver can be reached (git:main))"
# Push of a fresh clone with one more commit; expected decision; text that git shows; refs afterwards
PUSHES = {
    "branch": (["HEAD:refs/heads/feature/x"], "passed rule git:features", "-> feature/x", "+refs/heads/feature/x"),
    "update": (["HEAD:refs/heads/feature/old"], "passed rule git:features", "-> feature/old", ""),
    "force": (["--force", "HEAD~1:refs/heads/feature/new"], "passed rule git:features", "-> feature/new", ""),
    "tag": (["HEAD:refs/tags/v1"], "passed rule git:tags", "-> v1", "+refs/tags/v1"),
    "moved tag": (["--force", "HEAD:refs/tags/v0"], "blocked no_rule", "! [remote rejected] HEAD -> v0 (exeat: no rule", ""),
    "delete": (["--delete", "feature/old"], "blocked no_rule", "! [remote rejected] feature/old (exeat: no rule", ""),
    "main": (["HEAD:main"], "blocked approval_unavailable git:main", f"! [remote rejected] HEAD -> main {NO_APPROVAL}", ""),
    "forced main": (["--force", "HEAD:main"], "blocked approval_unavailable git:main", f"HEAD -> main {NO_APPROVAL}", ""),
    "feature and main": (
        ["HEAD:refs/heads/feature/x", "HEAD:main"],
        "blocked approval_unavailable git:main",
        "! [remote rejected] HEAD -> feature/x (exeat: another ref of this push is refused)",
        "",
    ),
    "feature and tag": (
        ["HEAD:refs/heads/feature/x", "HEAD:refs/tags/v1"],
        "passed rule git:tags",
        "-> v1",
        "+refs/heads/feature/x +refs/tags/v1",
    ),
    "everything": (["--mirror"], "blocked no_rule", "main -> main (exeat: ", ""),
}  # fmt: skip
PUSHES_OF_OLDER_PROTOCOLS = ("update", "moved tag", "main", "feature and tag")
INITIAL_REFS = {"refs/heads/main", "refs/heads/feature/old", "refs/heads/feature/new", "refs/tags/v0"}


def git(repository, *words):
    """Run git on the host side, without a network."""
    alone = ["git", "-c", "safe.directory=*", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(repository)]
    return subprocess.run([*alone, *words], capture_output=True, text=True, check=True).stdout.strip()


class Forge:
    """A git server in the lab, and tasks that use it."""

    def __init__(self, runner):
        self.runner = runner
        runner.lab.origin.name(dns_names())
        self.root = runner.lab.directory / "git"
        self._runs = 0

    def make(self, name):
        """Create a repository with refs to update, move and delete; returns its URL and path."""
        self.runner.lab.make_repository(name, {"README": "hello\n"})
        bare = self.root / f"{name}.git"
        tree = git(bare, "rev-parse", "main^{tree}")
        newer = git(bare, "commit-tree", tree, "-p", "main", "-m", "newer")
        for ref, commit in (
            ("refs/heads/feature/old", "main"),
            ("refs/heads/feature/new", newer),
            ("refs/tags/v0", "main"),
        ):
            git(bare, "update-ref", ref, commit)
        return f"{URL}/{name}.git", bare

    def run(self, *commands, version=2):
        """Run git commands one by one in a sandbox; returns their results, and the journal."""
        self._runs += 1
        usual = ["git", "-c", f"protocol.version={version}", "-c", "user.name=t", "-c", "user.email=t@t"]
        words = json.dumps([[*usual, *command] for command in commands])
        done = self.runner.run(
            f"git-{version}-{self._runs}", self.runner.rules(RULES, "git.yaml"), PYTHON, "-m", "task.programs", words
        )
        assert done.process.returncode == 0, done.process.stderr
        return [json.loads(results) for results in done.process.stdout.splitlines()], done.journal

    @staticmethod
    def refs(bare):
        return set(git(bare, "for-each-ref", "--format=%(refname)").split())


@pytest.fixture(scope="module")
def forge(runner):
    return Forge(runner)


def decided(journal, end):
    """Return the decisions on requests whose path ends with `end`."""
    return [
        " ".join([event["outcome"], event["reason"], *event.get("rules", [])])
        for event in journal.of(kind="request.decided")
        if event["http"]["path"].endswith(end)
    ]


def test_git_pushes_are_decided_by_ref(forge):
    """All pushes in one sandbox."""
    push(forge, 2, PUSHES)


@pytest.mark.parametrize("version", [0, 1])
def test_git_pushes_of_older_protocols_are_decided_by_ref(forge, version):
    push(forge, version, PUSHES_OF_OLDER_PROTOCOLS)


def push(forge, version, pushes):
    """Run the pushes in one sandbox, each from its own clone, and check the results."""
    commands, repositories = [], {}
    for name in pushes:
        refs = PUSHES[name][0]
        slug = f"acme/{name.replace(' ', '-')}-{version}"
        url, repositories[name] = forge.make(slug)
        commands += [
            ["clone", "--quiet", url, slug],
            ["-C", slug, "commit", "--quiet", "--allow-empty", "-m", "more"],
            ["-C", slug, "push", "origin", *refs],
            ["-C", slug, "fetch", "--quiet", "origin"],
        ]
    results, journal = forge.run(*commands, version=version)
    recorded = decided(journal, "/git-receive-pack")
    for at, name in enumerate(pushes):
        _, expected, shown, more = PUSHES[name]
        cloned, committed, pushed, fetched = results[4 * at : 4 * at + 4]
        assert (cloned[0], committed[0], fetched[0]) == (0, 0, 0), (name, cloned, committed, fetched)
        assert recorded[at] == expected, name
        assert (pushed[0] == 0) == expected.startswith("passed"), (name, pushed)
        assert shown in pushed[2], name
        assert forge.refs(repositories[name]) == INITIAL_REFS | {ref[1:] for ref in more.split()}, name
    assert len(recorded) == len(pushes)
    assert set(decided(journal, "/git-upload-pack")) == {"passed rule git:read"}


def test_fetch_and_push_of_another_repository_are_denied(forge):
    forge.runner.lab.origin.forget()
    url, bare = forge.make("evil/web")
    forge.make("acme/web")
    results, journal = forge.run(
        ["clone", "--quiet", url, "other"],
        ["clone", "--quiet", f"{URL}/acme/web.git", "web"],
        ["-C", "web", "push", url, "HEAD:refs/heads/feature/x"],
    )
    for code, _, error in (results[0], results[2]):
        assert code == 128
        assert "remote: exeat: no rule allows this" in error
    assert [request["target"] for request in forge.runner.lab.origin.requests() if "evil" in request["target"]] == []
    assert decided(journal, "/info/refs")[0] == "blocked no_rule"
    assert forge.refs(bare) == INITIAL_REFS


def test_denied_push_sends_only_its_advertisement_request(forge):
    """No objects either: the origin receives the advertisement request and no push."""
    forge.runner.lab.origin.forget()
    url, _ = forge.make("acme/kept")
    forge.run(
        ["clone", "--quiet", url, "kept"],
        ["-C", "kept", "commit", "--quiet", "--allow-empty", "-m", "secret"],
        ["-C", "kept", "push", "origin", "HEAD:main"],
    )
    pushes = [one["target"] for one in forge.runner.lab.origin.requests() if "receive-pack" in one["target"]]
    assert pushes == ["/acme/kept.git/info/refs?service=git-receive-pack"]
