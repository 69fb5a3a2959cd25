"""A git server behind a gate whose rules differ by repository and ref, and a checkout to push from."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import git_server
from tests.proxy.inspection.clients import require_tool
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.ports import free_port

RULES = """[
  {id: read, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/tls], action: allow,
   git: {repos: ["acme/*"], fetch: true}},
  {id: features, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/tls], action: allow,
   git: {repos: ["acme/*"], push: ["refs/heads/feature/**"]}},
  {id: tags, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/tls], action: flag,
   git: {repos: ["acme/*"], push: ["refs/tags/**"]}},
  {id: main, to: good.example, ports: [PORT/tls], action: ask,
   git: {repos: ["acme/*"], push: [refs/heads/main]}},
  {id: api, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/tls], action: allow,
   http: {methods: [GET, POST, PUT], paths: ["/api/**", "/acme/web.git/info/lfs/**"]}},
]"""
GIT = [
    "git",
    "-c",
    "user.name=t",
    "-c",
    "user.email=t@t",
    "-c",
    "init.defaultBranch=main",
    "-c",
    "advice.pushUpdateRejected=false",
]


@dataclass
class Forge:
    """A git server behind a gate, and a checkout of one of its repositories."""

    site: object
    root: Path
    work: Path
    environment: dict

    def git(self, *words, **more):
        return subprocess.run(
            [*GIT, *map(str, words)], capture_output=True, text=True, timeout=60, check=False,
            **{"cwd": self.work, "env": self.environment, **more},
        )  # fmt: skip

    def run_git(self, *words, **more):
        done = self.git(*words, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def remote(self, *words, version=2, http="HTTP/1.1", **more):
        """Run git through the gate."""
        resolve = f"http.curloptResolve={self.site.name}:{self.site.port}:127.0.0.1"
        return self.git(
            "-c", resolve, "-c", f"protocol.version={version}", "-c", f"http.version={http}", *words, **more
        )

    def url(self, repo="acme/web.git"):
        return f"https://{self.site.host}/{repo}"

    def refs(self, repo="acme/web.git"):
        output = self.run_git("-C", self.root / repo, "for-each-ref", "--format=%(refname)")
        return output.split()

    def pushes(self):
        """Return outcome, reason and rules of each push, without the advertisement before it."""
        return [
            (e["outcome"], e["reason"], e.get("rules", []))
            for e in self.site.gate.events("request.decided")
            if e["http"].get("method") == "POST" and e["http"]["path"].endswith("/git-receive-pack")
        ]


def on_one_port(gate, origins):
    """Start an origin and a listener of the gate with the same port, on two addresses."""
    origin = origins.web("good.example", address="127.0.0.2", port=free_port("127.0.0.1", "127.0.0.2"))
    return origin, make_site(gate, origin, address="127.0.0.2", listen=origin.port)


@pytest.fixture(scope="session")
def repositories(tmp_path_factory):
    """Repositories of a server and a checkout of one, made once and copied by each test: they take thirty runs of git."""
    require_tool("git")
    directory = tmp_path_factory.mktemp("git")
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*words):
        subprocess.run([*GIT, *map(str, words)], cwd=directory, env=environment, check=True)

    for repo in ("acme/web", "acme/other", "evil/web"):
        git_server.make_repository(directory / "repositories", repo, {"README": "hello\n"})
        bare = directory / "repositories" / f"{repo}.git"
        git("-C", bare, "config", "receive.advertisePushOptions", "true")
        git("-C", bare, "config", "receive.certNonceSeed", "x")
    git("clone", "-q", directory / "repositories" / "acme/web.git", "work")
    git("-C", "work", "commit", "-q", "--allow-empty", "-m", "second")
    return directory


@pytest.fixture
def forge(gate, origins, repositories, tmp_path, monkeypatch):
    root, work = tmp_path / "repositories", tmp_path / "work"
    monkeypatch.setattr(git_server, "ROOT", root)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSL_CAINFO": str(gate.bundle),
    }  # fmt: skip
    origin, site = on_one_port(gate, origins)
    site.origin = origin
    gate.rules(RULES.replace("PORT", str(origin.port)))
    for source in (root, work):
        shutil.copytree(repositories / source.name, source, symlinks=True, ignore=shutil.ignore_patterns("*.sample"))
    found = Forge(site, root, work, environment)
    found.run_git("remote", "set-url", "origin", found.url())
    return found
