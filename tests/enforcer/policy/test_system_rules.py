"""Root's rules and identities: in force whoever runs the task and whatever they name, or nothing runs."""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from enforcer.policy import run_request
from enforcer.system.errors import HostError
from tests.support import harness

ALLOW = "version: 1\nname: web\nrules:\n  - {id: all, to: '*', ports: [443], tls: splice, action: allow}\n"
DENY = "version: 1\nname: root\nrules:\n  - {id: no, to: '**.bad.example', action: deny}\n"
# The command itself, with another directory in the place of /etc/exeat: an argument, and nothing a user can set.
PROGRAM = """
import argparse, sys
from pathlib import Path
from enforcer.cli import perform
from enforcer.cli import run
from enforcer.cli.parsing import add_arguments
parser = argparse.ArgumentParser()
add_arguments(parser, run.ARGUMENTS)
sys.exit(perform(lambda given: run.run(given, Path(sys.argv[1])), parser.parse_args(sys.argv[2:])))
"""
REPLAY = PROGRAM.replace("import run", "import replay as run")


@pytest.fixture
def etc():
    """A directory like /etc/exeat, root's."""
    base = Path(tempfile.mkdtemp(prefix="exeat-etc-"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run(someone, etc, rules, *options, command=("touch", "started")):
    words = [sys.executable, "-P", "-c", PROGRAM, etc, "--quiet", "--rules", rules, *options, "--", *command]
    return someone.run(words)


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", ALLOW)


def started(someone):
    return (someone.work / "started").exists()


def sources(someone):
    return [event["sources"] for event in someone.events() if event["kind"] == "rules.loaded"][-1]


def test_roots_rules_are_always_loaded(someone, etc, rules):
    assert run(someone, etc, rules).returncode == 0
    assert sources(someone) == [str(rules)]
    one, two = (
        write(etc / "rules.d" / "10-bad.yaml", DENY),
        write(etc / "rules.d" / "20-more.yaml", DENY.replace("root", "more")),
    )
    write(etc / "rules.d" / "README", "not rules")
    assert run(someone, etc, rules).returncode == 0
    assert sorted(sources(someone)) == sorted(map(str, (rules, one, two)))


@harness.as_a_user
def test_no_users_allow_overrides_roots_rules(someone, etc, rules):
    write(etc / "rules.d" / "bad.yaml", DENY)
    lookup = "import socket; socket.getaddrinfo('www.bad.example', 443); socket.getaddrinfo('www.good.example', 443)"
    base = ["--read", sys.base_prefix] if sys.base_prefix != "/usr" else []
    python = Path(sys.base_prefix) / "bin" / "python3"
    done = run(someone, etc, rules, *base, command=(python, "-c", lookup))
    assert done.returncode == 0, done.stderr
    told = {e["dns"]["question"]: (e["verdict"], e["rules"]) for e in someone.events() if e["kind"] == "dns.decided"}
    assert told["www.bad.example"] == ("deny", ["root:no"])
    assert told["www.good.example"] == ("allow", ["web:all"])


@harness.as_a_user
def test_replay_includes_roots_rules(someone, etc, rules):
    lookup = "import socket; socket.getaddrinfo('www.bad.example', 443)"
    base = ["--read", sys.base_prefix] if sys.base_prefix != "/usr" else []
    assert (
        run(someone, etc, rules, *base, command=(Path(sys.base_prefix) / "bin" / "python3", "-c", lookup)).returncode
        == 0
    )
    replay = [sys.executable, "-P", "-c", REPLAY, etc, "--rules", rules]
    before = someone.run(replay)
    assert (before.returncode, before.stderr) == (0, b"")
    write(etc / "rules.d" / "bad.yaml", DENY)
    after = someone.run(replay)
    assert after.returncode == 1
    assert "www.bad.example" in after.stdout.decode()
    assert "would be blocked by `root:no`" in after.stdout.decode()
    os.chown(etc / "rules.d" / "bad.yaml", 12345, 0)
    refused = someone.run(replay)
    assert refused.returncode == 2
    assert "belongs to uid 12345 and not to root" in refused.stderr.decode()


def _broken(etc):
    write(etc / "rules.d" / "bad.yaml", DENY.replace("deny", "dney"))
    return 2, "did you mean `deny`?"


def _somebody_s(etc):
    os.chown(write(etc / "rules.d" / "bad.yaml", DENY), 12345, 0)
    return 125, "belongs to uid 12345 and not to root"


def _writable(etc):
    write(etc / "rules.d" / "bad.yaml", DENY).chmod(0o664)
    return 125, "can be written by others than root"


def _directory_writable(etc):
    write(etc / "rules.d" / "bad.yaml", DENY).parent.chmod(0o777)
    return 125, "can be written by others than root"


def _parent_writable(etc):
    write(etc / "rules.d" / "bad.yaml", DENY)
    etc.chmod(0o777)
    return 125, "can be written by others than root"


def _link_to_somebody_s(etc):
    own = write(etc / "elsewhere.yaml", DENY)
    os.chown(own, 12345, 0)
    (etc / "rules.d").mkdir()
    (etc / "rules.d" / "bad.yaml").symlink_to(own)
    return 125, "belongs to uid 12345 and not to root"


def _dangling(etc):
    (etc / "rules.d").mkdir()
    (etc / "rules.d" / "bad.yaml").symlink_to("gone")
    return 125, "No such file"


def _including_somebody_s(etc):
    own = write(etc / "more.yaml", DENY.replace("root", "more"))
    os.chown(own, 12345, 0)
    write(etc / "rules.d" / "bad.yaml", f"version: 1\nname: root\ninclude: [{{file: {own}}}]\n")
    return 125, "belongs to uid 12345 and not to root"


def _somebody_s_directory(etc):
    """Root's two files in a directory of a user's, who can change their names."""
    own = write(etc / "theirs" / "more.yaml", DENY.replace("root", "more"))
    os.chown(own.parent, 12345, 0)
    return own


def _including_from_somebody_s_directory(etc):
    write(etc / "rules.d" / "bad.yaml", f"version: 1\nname: root\ninclude: [{{file: {_somebody_s_directory(etc)}}}]\n")
    return 125, "theirs`, which belongs to uid 12345 and not to root, who could put another file there"


def _link_through_somebody_s_directory(etc):
    (etc / "rules.d").mkdir()
    (etc / "rules.d" / "bad.yaml").symlink_to(_somebody_s_directory(etc))
    return 125, "theirs`, which belongs to uid 12345 and not to root, who could put another file there"


def _including_from_a_directory_that_others_write(etc):
    own = write(etc / "all" / "more.yaml", DENY.replace("root", "more"))
    own.parent.chmod(0o777)
    write(etc / "rules.d" / "bad.yaml", f"version: 1\nname: root\ninclude: [{{file: {own}}}]\n")
    return 125, "all`, which can be written by others than root, who could put another file there"


def _a_file_where_the_directory_should_be(etc):
    write(etc / "rules.d", "")
    return 125, "cannot be read: Not a directory"


WRONG = [
    _broken, _somebody_s, _writable, _directory_writable, _parent_writable, _link_to_somebody_s, _dangling,
    _including_somebody_s, _including_from_somebody_s_directory, _link_through_somebody_s_directory,
    _including_from_a_directory_that_others_write, _a_file_where_the_directory_should_be,
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_start_is_refused_if_roots_rules_are_not_roots(someone, etc, rules, wrong):
    status, said = wrong(etc)
    done = run(someone, etc, rules)
    assert (done.returncode, said in done.stderr.decode()) == (status, True), done.stderr
    assert not started(someone)


@pytest.mark.parametrize("unreadable", ["rules.d", "rules.d/bad.yaml"])
def test_start_is_refused_if_roots_rules_are_unreadable(someone, etc, rules, unreadable):
    write(etc / "rules.d" / "bad.yaml", DENY)
    (etc / unreadable).chmod(0)
    done = run(someone, etc, rules)
    if someone.user:
        assert done.returncode in {2, 125}
        assert "permission denied" in done.stderr.decode().lower()
    assert started(someone) is not someone.user


def test_no_variable_or_option_moves_the_system_directory(someone, etc, rules):
    write(etc / "rules.d" / "bad.yaml", DENY)
    names = ("EXEAT_ETC", "EXEAT_SYSTEM", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS")
    words = [sys.executable, "-P", "-c", PROGRAM, etc, "--quiet", "--rules", rules, "--", "true"]
    elsewhere = someone.home / "elsewhere"  # not in the workspace, where a task could write what it obeys
    assert someone.run(words, env=dict.fromkeys(names, str(elsewhere))).returncode == 0
    assert str(etc / "rules.d" / "bad.yaml") in sources(someone)


IDENTITIES = """
version: 1
identities:
  - {users: [USER], tasks: ["build-*", touch], labels: {team: [web, data]}}
  - {users: [USER], tasks: [release], labels: {team: web}, required: [team]}
  - {users: [somebody-else], tasks: ["*"]}
"""
CLAIMS = [
    ("build-1", {}, True),
    ("build-1", {"team": "data"}, True),
    ("build-1", {"team": "ops"}, False),
    ("build-1", {"other": "web"}, False),
    ("deploy", {}, False),
    ("release", {}, False),
    ("release", {"team": "web"}, True),
    ("release", {"team": "data"}, False),
]


def test_identities_restrict_task_names_and_labels(etc):
    harness.needs_root()
    write(etc / "identities.yaml", IDENTITIES.replace("USER", "root"))
    for name, labels, allowed in CLAIMS:
        with contextlib.nullcontext() if allowed else pytest.raises(HostError, match="refuses this:"):
            run_request.check_claims(name, labels, etc)


@pytest.mark.parametrize(
    ("claim", "allowed"),
    [((), True), (("--task", "release", "--label", "team=data"), False)],
    ids=["named after its command", "a label of another's"],
)
def test_forbidden_claim_refuses_the_start(someone, etc, rules, claim, allowed):
    write(etc / "identities.yaml", IDENTITIES.replace("USER", str(harness.UID) if someone.user else "root"))
    done = run(someone, etc, rules, *claim)
    assert started(someone) is allowed
    if allowed:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 125
        assert f"exeat: `{etc}/identities.yaml` refuses this:".encode() in done.stderr
        assert someone.events() == []


def test_user_without_an_identity_may_start_nothing(someone, etc, rules):
    write(etc / "identities.yaml", IDENTITIES.replace("USER", "nobody-here"))
    done = run(someone, etc, rules)
    assert (done.returncode, started(someone)) == (125, False)
    assert b"or the user can start no task" in done.stderr


@pytest.mark.parametrize("wrong", ["broken", "writable", "somebody's", "linked", "unreadable"])
def test_start_is_refused_if_identities_are_not_roots(someone, etc, rules, wrong):
    path = write(etc / "identities.yaml", "version: 1\n" if wrong == "broken" else IDENTITIES.replace("USER", "root"))
    if wrong == "writable":
        path.chmod(0o666)
    elif wrong == "somebody's":
        os.chown(path, 12345, 0)
    elif wrong == "linked":
        theirs = write(etc / "theirs" / "identities.yaml", path.read_text())
        os.chown(theirs.parent, 12345, 0)
        path.unlink()
        path.symlink_to(theirs)
    elif wrong == "unreadable":
        path.chmod(0)
        if not someone.user:
            return  # root reads everything
    done = run(someone, etc, rules)
    assert (done.returncode, started(someone)) == (125, False), done.stderr


@pytest.mark.parametrize("wrong", ["no directory", "a loop of links"])
def test_unreadable_identities_forbid_every_claim(tmp_path, wrong):
    place = tmp_path / "exeat"
    if wrong == "no directory":
        place.write_text("")
    else:
        place.symlink_to(place)
    with pytest.raises(HostError, match="nothing runs while"):
        run_request.check_claims("anything", {}, place)
    run_request.check_claims(
        "anything", {}, tmp_path
    )  # there is none: whoever starts a task may call it what they like


@harness.as_a_user
def test_names_and_labels_reach_rules_and_events(someone, rules):
    someone.write(
        rules, "version: 1\nname: web\nrules:\n"
        "  - {id: ours, to: www.good.example, for: {tasks: ['build-*'], labels: {team: web}}, action: allow}\n",
    )  # fmt: skip
    lookup = ["getent", "ahosts", "www.good.example"]
    for options in ((), ("--task", "build-7"), ("--task", "build-7", "--label", "team=web", "--label", "tier=2")):
        someone.exeat("run", "--quiet", "--rules", rules, *options, "--", *lookup)
    decided = [event for event in someone.events() if event["kind"] == "dns.decided"]
    seen = {(e["task"]["name"], tuple(e["task"].get("labels", {}).items()), e["verdict"]) for e in decided}
    assert seen == {
        ("getent", (), "deny"), ("build-7", (), "deny"), ("build-7", (("team", "web"), ("tier", "2")), "allow"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "Not A Slug"), "lower-case letters"), (("--task", ""), "--task"),
        (("--label", "team"), "write NAME=VALUE"), (("--label", "=x"), "write NAME=VALUE"),
        (("--label", "Team=x"), "lower-case letters"), (("--label", "team="), "the value of `team`"),
        (("--label", "team=a b"), "the value of `team`"), (("--label", "team=" + "x" * 64), "the value of `team`"),
        (("--label", "team=a", "--label", "team=b"), "given twice"),
    ],
)  # fmt: skip
@harness.as_a_user
def test_malformed_names_and_labels_are_errors(someone, rules, options, said):
    done = someone.exeat("run", "--rules", rules, *options, "--", "touch", "started")
    assert (done.returncode, started(someone)) == (2, False)
    assert said in done.stderr.decode()
