"""git over HTTPS with packs larger than anything that is kept, and over SSH, passed through by name."""

import os
import shutil
import subprocess

import pytest

from tests.support import harness

URL = "https://forge.example"
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
LARGE = 6 << 20  # bytes that can't be compressed; git sends what is over 1 MB in chunks, and 4 MB would be held at most
RULES = """
version: 1
name: forge
rules:
  - {id: refs, to: forge.example, git: {repos: ["acme/*"], fetch: true, push: ["refs/heads/**"]}, action: allow}
"""


def git(repository, *words):
    alone = ["git", "-c", "safe.directory=*", "-C", str(repository)]
    return subprocess.run([*alone, *words], capture_output=True, text=True, check=True).stdout.strip()


def work(url, name):
    """Clone, commit something large, push it, fetch it again into a second clone, and look at all of it."""
    return [
        [*GIT, "clone", "--quiet", url, name],
        ["sh", "-c", f"head -c {LARGE} /dev/urandom >{name}/large"],
        [*GIT, "-C", name, "add", "large"],
        [*GIT, "-C", name, "commit", "--quiet", "-m", "large"],
        [*GIT, "-C", name, "push", "origin", "HEAD:refs/heads/large"],
        [*GIT, "clone", "--quiet", "--depth", "1", url, f"{name}-again"],
        [*GIT, "-C", f"{name}-again", "fetch", "--quiet", "origin", "large"],
        [*GIT, "-C", f"{name}-again", "fsck", "--strict"],
        [*GIT, "-C", f"{name}-again", "cat-file", "-s", "FETCH_HEAD:large"],
        [*GIT, "-C", name, "rev-parse", "HEAD"],
    ]


def check(said, bare):
    for one in said:
        assert one.ok, one.err
    assert said[-2].out.strip() == str(LARGE)
    assert git(bare, "rev-parse", "refs/heads/large") == said[-1].out.strip()


@pytest.mark.parametrize("rules", [None, RULES], ids=["any request", "by ref"])
def test_large_packs_pass_over_https(world, rules):
    name = f"acme/large-{bool(rules)}"
    world.lab.make_repository(name, {"README": "hello\n"})
    file = world.place.rules(rules, "forge.yaml") if rules else None
    tried = world.run(*work(f"{URL}/{name}.git", "large"), rules=file)
    check(tried.said, world.lab.directory / "git" / f"{name}.git")


def test_oldest_protocol_works_over_http1(world):
    world.lab.make_repository("acme/old", {"README": "hello\n"})
    old = [*GIT, "-c", "protocol.version=0", "-c", "http.version=HTTP/1.1"]
    tried = world.run(
        [*old, "clone", "--quiet", f"{URL}/acme/old.git"], [*old, "-C", "old", "push", "origin", "HEAD:refs/heads/x"]
    )
    assert [said.ok for said in tried.said] == [True, True]


# over SSH

SSHD = """
Port 22
HostKey {work}/host
AuthorizedKeysFile {work}/known
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv GIT_PROTOCOL
SetEnv GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*
PidFile none
"""


@pytest.fixture(scope="module")
def keys(world, tmp_path_factory):
    """An SSH server among the origins, with a /run of its own; returns what a client needs."""
    sshd = shutil.which("sshd", path=os.defpath + ":/usr/sbin:/sbin")
    if sshd is None or shutil.which("ssh") is None:
        harness.missing("sshd")
    directory = tmp_path_factory.mktemp("sshd")
    for name in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    shutil.copy(directory / "mine.pub", directory / "known")
    (directory / "sshd_config").write_text(SSHD.format(work=directory))
    start = 'mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", start, "sh", sshd, "-D", "-e", "-f", directory / "sshd_config"]
    with (directory / "log").open("wb") as log, world.lab.start_at_origin(argv, stderr=log) as process:
        world.until_listening(process, 22)
        host = (directory / "host.pub").read_text()
        yield {"mine": (directory / "mine").read_bytes(), "hosts": f"shell.example {host}".encode()}
        process.kill()


SSH = """
chmod 600 mine
export GIT_SSH_COMMAND="ssh -F none -o BatchMode=yes -i $PWD/mine -o UserKnownHostsFile=$PWD/hosts"
exec "$@"
"""


def test_git_works_over_ssh(world, keys):
    world.lab.make_repository("acme/ssh", {"README": "hello\n"})
    bare = world.lab.directory / "git" / "acme" / "ssh.git"
    commands = [["sh", "-c", SSH, "sh", *words] for words in work(f"ssh://root@shell.example{bare}", "ssh")]
    denied = ["sh", "-c", SSH, "sh", *GIT, "clone", "ssh://root@www.denied.example/x.git"]
    tried = world.run(*commands, denied, files=keys)
    *said, refused = tried.said
    check(said, bare)
    assert "Connection reset by peer" in refused.err
    told = [
        (event["destination"]["name"], event["protocol"], event["outcome"], event["reason"])
        for event in tried.journal.of(kind="connection.decided")
    ]
    assert set(told) == {
        ("shell.example", "tcp", "passed", "rule"),
        ("www.denied.example", "tcp", "blocked", "no_rule"),
    }
