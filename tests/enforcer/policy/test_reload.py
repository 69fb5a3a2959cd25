"""Rule files that change while their task runs: however they are saved, whatever is wrong with them, whoever wrote them."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from enforcer.policy.reload import CHECK_EVERY
from enforcer.policy.rule_files import SYSTEM
from tests.support import harness
from tests.support.terminals import Terminal

EXEAT = Path(sys.executable).with_name("exeat")
FIRST = "version: 1\nname: web\nrules:\n  - {id: first, to: first.example, action: allow}\n"
SECOND = FIRST.replace("first", "second")
BROKEN = FIRST.replace("allow", "alow")
WAIT = 30  # seconds for what must happen


class Running:
    """A task that waits, and what its run has told so far."""

    def __init__(self, someone, process):
        self.someone, self.process, self.error = someone, process, b""

    def events(self, kind):
        return [event for event in self.someone.events() if event["kind"] == kind]

    def wait_for_events(self, kind, count):
        """The events of a kind, once there are so many."""
        deadline = time.monotonic() + WAIT
        while len(found := self.events(kind)) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(found) >= count, self.someone.events()
        return found

    def wait_for_new_rules(self, loaded, what):
        """The event of rules other than those of an earlier one, once they are in force; it tells of `what`."""
        deadline = time.monotonic() + WAIT
        while (last := self.events("rules.loaded")[-1])["revision"] == loaded["revision"]:
            assert time.monotonic() < deadline, what
            time.sleep(0.02)
        assert last["previous"] == loaded["revision"], what
        return last

    def wait_for_rejection(self, said, before):
        """The rejection that says so, once there is one behind the first `before`."""
        deadline = time.monotonic() + WAIT
        while not (found := [e for e in self.events("rules.rejected")[before:] if said in e["problems"][0]]):
            assert time.monotonic() < deadline, (said, self.events("rules.rejected")[before:])
            time.sleep(0.02)
        return found[-1]

    def quietly(self, seconds=0.8):
        """Let some time pass in which something could happen."""
        time.sleep(seconds)
        return self

    def tell(self, line):
        """Say a line to the task, and return its answer."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()


# The command itself, with another directory in the place of /etc/exeat, and other seconds between two looks at files.
PROGRAM = """
import argparse, sys
from pathlib import Path
from enforcer.cli import perform
from enforcer.cli import run
from enforcer.cli.parsing import add_arguments
from enforcer.policy import reload
reload.CHECK_EVERY = float(sys.argv[2])
parser = argparse.ArgumentParser()
add_arguments(parser, run.ARGUMENTS)
sys.exit(perform(lambda given: run.run(given, Path(sys.argv[1])), parser.parse_args(sys.argv[3:])))
"""
LINES = 'echo ready; while read -r line; do eval "$line"; echo done; done'


@contextlib.contextmanager
def running(someone, rules, script=LINES, etc=None, check_every=CHECK_EVERY):
    plain = etc is None and check_every == CHECK_EVERY
    command = [EXEAT, "run"] if plain else [sys.executable, "-P", "-c", PROGRAM, etc or SYSTEM, check_every]
    argv = [*command, "--quiet", "--rules", rules, "--", "sh", "-c", script]
    words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
    environment = {**os.environ, "HOME": str(someone.home), "PYTHONPATH": str(harness.PROJECT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=someone.work) as process:
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        try:
            run = Running(someone, process)
            yield run
            process.stdin.close()
            run.error = process.stderr.read()
            assert process.wait(WAIT) == 0, run.error
        finally:
            process.kill()


def save(someone, path, text):
    """Save a file as `someone` would."""
    return someone.write(path, text)


def _truncated(someone, path, text):
    save(someone, path, text)


def _renamed_over(someone, path, text):
    save(someone, path.with_name("new~"), text).rename(path)


def _moved_away_first(someone, path, text):
    path.rename(path.with_name("old~"))  # vim, with backupcopy=no
    save(someone, path, text)


def _removed_first(someone, path, text):
    path.unlink()
    save(someone, path, text)


def _in_two_steps(someone, path, text):
    save(someone, path, text[:40])
    save(someone, path, text)


@harness.as_a_user
def test_rules_saved_by_any_editor_come_into_force(someone):
    rules = save(someone, someone.home / "rules" / "web.yaml", FIRST)
    with running(someone, rules) as run:
        (first,) = run.wait_for_events("rules.loaded", 1)
        for number, way in enumerate((_truncated, _renamed_over, _moved_away_first, _removed_first, _in_two_steps)):
            for again in (0, 1):  # and once more: what is watched is what stands there now
                way(someone, rules, FIRST.replace("first", f"rule-{number}-{again}"))
                first = run.wait_for_new_rules(first, way.__name__)
    assert not run.events("gate.error")


@harness.as_a_user
def test_swapped_link_above_the_file_is_followed(someone):
    """As Kubernetes updates a ConfigMap: the file is a link through `..data`, which is replaced by renaming."""
    folder = someone.home / "config"
    for version, text in (("..1", FIRST), ("..2", SECOND)):
        save(someone, folder / version / "web.yaml", text)
    (folder / "..data").symlink_to("..1")
    (folder / "web.yaml").symlink_to("..data/web.yaml")
    with running(someone, folder / "web.yaml") as run:
        (folder / "..data_tmp").symlink_to("..2")
        (folder / "..data_tmp").rename(folder / "..data")
        shutil.rmtree(folder / "..1")
        first, second = run.wait_for_events("rules.loaded", 2)
        assert second["previous"] == first["revision"] != second["revision"]
        assert second["sources"] == [str(folder / "..2" / "web.yaml")]


@harness.as_a_user
def test_included_files_are_watched_even_if_missing(someone):
    included = save(someone, someone.home / "rules" / "more.yaml", FIRST.replace("web", "more"))
    rules = save(someone, someone.home / "rules" / "web.yaml", "version: 1\ninclude: [{file: more.yaml}]\n")
    with running(someone, rules) as run:
        save(someone, included, SECOND.replace("web", "more"))
        run.wait_for_events("rules.loaded", 2)
        save(someone, rules, "version: 1\ninclude: [{file: more.yaml}, {file: later.yaml}]\n")
        (rejected,) = run.wait_for_events("rules.rejected", 1)
        assert "later.yaml` can't be read: no such file" in rejected["problems"][0]
        save(someone, someone.home / "rules" / "later.yaml", FIRST.replace("web", "later"))
        assert len(run.wait_for_events("rules.loaded", 3)[2]["sources"]) == 3


@harness.as_a_user
def test_name_lists_are_watched(someone):
    names = save(someone, someone.home / "rules" / "names.txt", "one.example\n")
    rules = save(
        someone, someone.home / "rules" / "web.yaml",
        "version: 1\nrules:\n  - {id: no, to: {list: names.txt}, action: deny}\n",
    )  # fmt: skip
    with running(someone, rules) as run:
        save(someone, names, "one.example\ntwo.example\n")
        first, second = run.wait_for_events("rules.loaded", 2)
        assert first["revision"] != second["revision"]


BAD = {
    "broken": (BROKEN, "did you mean `allow`?"),
    "a failing test": (FIRST + "tests:\n  - {attempt: 'tls other.example:443', expect: allow}\n", "test failed"),
    "another pool of addresses": (FIRST + "settings: {dns_pool: 198.19.0.0/16}\n", "`dns_pool` can't change"),
    "gone": (None, "can't be read: no such file"),
    "not to be read": (0o000, "permission denied"),
    "a directory": ("a directory", "it is not a file"),
    "a fifo": ("a fifo", "it is not a file"),
}


@harness.as_a_user
def test_broken_rules_are_reported_and_the_old_ones_stay(someone):
    rules = save(someone, someone.home / "rules" / "web.yaml", FIRST)
    bad = [name for name in BAD if name != "not to be read" or someone.user]  # root reads everything
    with running(someone, rules) as run:
        (loaded,) = run.wait_for_events("rules.loaded", 1)
        for number, name in enumerate(bad, 1):
            text, said = BAD[name]
            told = len(run.events("rules.rejected"))
            if text is None:
                rules.unlink()
            elif isinstance(text, int):
                rules.chmod(text)
            elif name in {"a directory", "a fifo"}:
                rules.unlink()
                rules.mkdir() if name == "a directory" else os.mkfifo(rules)
            else:
                save(someone, rules, text)
            rejected = run.wait_for_rejection(said, told)
            assert rejected["revision"] == loaded["revision"] == run.events("rules.loaded")[-1]["revision"], name
            # and back again
            if rules.is_dir():
                rules.rmdir()
            elif rules.exists():
                rules.unlink()
            save(someone, rules, FIRST.replace("first", f"again-{number}"))
            loaded = run.wait_for_new_rules(loaded, name)
    said = re.findall(rb"rules were not loaded again, those in force|valid again", run.error)
    assert [word for word, _ in itertools.groupby(said)] == [said[0], b"valid again"] * len(bad)


def test_sighup_reloads_the_rules_and_does_not_reach_the_task(someone):
    rules = save(someone, someone.home / "rules" / "web.yaml", FIRST)
    with running(someone, rules) as run:
        os.kill(run.process.pid, signal.SIGHUP)
        first, second = run.wait_for_events("rules.loaded", 2)
        assert first["revision"] == second["revision"] == second["previous"]
        assert run.tell("true") == "done"
        save(someone, rules, FIRST.replace("name: web", "name: web\nsandbox: {hostname: other}"))
        run.wait_for_new_rules(second, "another sandbox")
        (told,) = run.wait_for_events("gate.error", 1)
        assert told["fault"]["where"] == "worker"
        assert "`sandbox` changed" in told["fault"]["detail"]
        assert run.tell("hostname") != "other"
    assert run.error.count(b"`sandbox` changed") == 1


@harness.as_a_user
def test_unchanged_rules_are_not_reloaded(someone):
    rules = save(someone, someone.home / "rules" / "web.yaml", FIRST)
    with running(someone, rules) as run:
        run.quietly()
        save(someone, rules.with_name("other.yaml"), SECOND)
        rules.read_text()
        run.quietly()
        assert len(run.events("rules.loaded")) == 1


ATTACKS = {
    "its own file in the place of the rules": "cp evil.yaml rules.yaml; mv -f evil.yaml rules.yaml; ln -f evil.yaml rules.yaml",
    "the rules themselves": "cat evil.yaml > rules.yaml; rm -f rules.yaml; mv rules.yaml gone",
    "the directory above": "mv conf gone; mkdir -p other; cp evil.yaml other/web.yaml; mv -T other conf; rm -rf conf",
    "a link in the place of the directory": "rmdir conf; ln -sfn .. conf; mv conf gone && ln -s . conf",
}


@pytest.mark.parametrize("place", ["rules.yaml", "conf/web.yaml"])
def test_task_cannot_change_its_rules(someone, place):
    rules = save(someone, someone.work / place, FIRST)
    save(someone, someone.work / "evil.yaml", SECOND)
    with running(someone, rules) as run:
        run.quietly(0.5)
        for count, (attack, script) in enumerate(ATTACKS.items(), 2):
            save(someone, someone.work / "evil.yaml", SECOND)
            assert run.tell(f"( {script} ) 2>/dev/null") == "done"
            run.quietly(0.3)
            os.kill(run.process.pid, signal.SIGHUP)
            loaded = run.wait_for_events("rules.loaded", count)
            assert {event["revision"] for event in loaded} == {loaded[0]["revision"]}, attack
            assert rules.read_text() == FIRST, attack
        run.quietly(1.0)
        loaded = run.events("rules.loaded")
        assert {event["revision"] for event in loaded} == {loaded[0]["revision"]}
    assert rules.read_text() == FIRST


LEADS = {
    "a link in the workspace": ("link.yaml", "is reached through the symbolic link"),
    "a link to a directory in the workspace": ("dir/web.yaml", "is reached through the symbolic link"),
}


@pytest.mark.parametrize("lead", LEADS)
def test_rules_that_a_task_could_redirect_refuse_the_start(someone, lead):
    outside = save(someone, someone.home / "rules" / "web.yaml", FIRST)
    (someone.work / "link.yaml").symlink_to(outside)
    (someone.work / "dir").symlink_to(outside.parent)
    path, said = LEADS[lead]
    done = someone.exeat("run", "--rules", someone.work / path, "--", "touch", "started")
    assert (done.returncode, said in done.stderr.decode()) == (2, True), done.stderr
    include = save(someone, outside.with_name("all.yaml"), f"version: 1\ninclude: [{{file: {someone.work / path}}}]\n")
    done = someone.exeat("run", "--rules", include, "--", "touch", "started")
    assert (done.returncode, said in done.stderr.decode()) == (2, True), done.stderr
    assert not (someone.work / "started").exists()


def test_path_through_the_workspace_is_resolved_at_the_start(someone):
    (someone.work / "sub").mkdir()
    save(someone, someone.work / "web.yaml", FIRST)
    include = save(someone, someone.work / "all.yaml", "version: 1\ninclude: [{file: sub/../web.yaml}]\n")
    done = someone.exeat("run", "--rules", include, "--", "touch", "started")
    assert done.returncode == 2
    assert b"spell it without `..`" in done.stderr


def test_new_include_writable_by_the_task_is_not_loaded(someone):
    rules = save(someone, someone.home / "rules" / "web.yaml", FIRST)
    evil = save(someone, someone.work / "more.yaml", SECOND.replace("web", "more"))
    with running(someone, rules) as run:
        save(someone, rules, f"version: 1\nname: web\ninclude: [{{file: {evil}}}]\n")
        (rejected,) = run.wait_for_events("rules.rejected", 1)
        assert "is in a path that the task may write" in rejected["problems"][0]
        assert len(run.events("rules.loaded")) == 1


@pytest.mark.parametrize("place", ["rules.yaml", "conf/web.yaml", "conf/deep/web.yaml"])
def test_replaced_rule_file_is_covered_again_and_refused(someone, place):
    rules = save(someone, someone.work / place, FIRST)
    check_every = 0.5 if "/" in place else CHECK_EVERY  # only by looking it is seen that a directory above is another
    with running(someone, rules, check_every=check_every) as run:
        run.quietly(0.5)
        save(someone, someone.work / "new" / place, SECOND)
        at = Path(place).parts[0]  # the directory, as `git checkout` may do it
        if "/" in place:
            (someone.work / at).rename(someone.work / "before")
        (someone.work / "new" / at).rename(someone.work / at)
        (rejected,) = run.wait_for_events("rules.rejected", 1)
        assert "was replaced after the task had started" in rejected["problems"][0]
        run.quietly(0.3)
        assert run.tell(f"echo evil >> {place} 2>/dev/null; mv {place} gone 2>/dev/null") == "done"
        if "/" in place:
            assert run.tell("mv conf elsewhere 2>/dev/null") == "done"
        assert len(run.events("rules.loaded")) == 1
    assert rules.read_text() == SECOND


def test_rule_file_replaced_twice_is_covered(someone):
    """An editor that saves by renaming does so at every save: the cover goes each time."""
    rules = save(someone, someone.work / "rules.yaml", FIRST)
    with running(someone, rules) as run:
        run.quietly(0.5)
        for count in (1, 2, 3):
            save(someone, rules.with_name("new~"), f"{SECOND}# {count}\n").rename(rules)
            run.wait_for_events("rules.rejected", count)
            run.quietly(0.3)
            assert run.tell("echo evil >> rules.yaml 2>/dev/null; mv rules.yaml gone 2>/dev/null") == "done"
            assert rules.read_text() == f"{SECOND}# {count}\n"
    assert len(run.events("rules.loaded")) == 1


def test_roots_rules_are_watched_and_always_applied(someone):
    rules = save(someone, someone.home / "rules" / "web.yaml", FIRST)
    etc = Path(tempfile.mkdtemp(prefix="exeat-etc-"))
    etc.chmod(0o755)
    try:
        with running(someone, rules, etc=etc) as run:
            folder = etc / "rules.d"
            folder.mkdir()
            run.wait_for_events("rules.loaded", 2)  # there is something to read now, though nothing in it
            (folder / "more.yaml").write_text(SECOND.replace("web", "more"))
            assert str(folder / "more.yaml") in run.wait_for_events("rules.loaded", 3)[-1]["sources"]
            save(someone, rules, BROKEN)
            run.wait_for_events("rules.rejected", 1)
            (folder / "more.yaml").write_text(SECOND.replace("web", "more").replace("allow", "deny"))
            loaded, rejected = run.wait_for_events("rules.loaded", 4)[-1], run.wait_for_events("rules.rejected", 2)[-1]
            assert rejected["revision"] == loaded["revision"] != run.events("rules.loaded")[-2]["revision"]
            run.tell("getent hosts second.example")
            assert run.wait_for_events("dns.decided", 1)[-1]["rules"] == ["more:second"]
            save(someone, rules, FIRST)
            run.wait_for_events("rules.loaded", 5)
            count = len(run.events("rules.loaded"))
            os.chown(folder / "more.yaml", 12345, 0)
            assert "belongs to uid 12345" in run.wait_for_events("rules.rejected", 3)[-1]["problems"][0]
            (folder / "more.yaml").unlink()
            assert str(folder / "more.yaml") not in run.wait_for_events("rules.loaded", count + 1)[-1]["sources"]
    finally:
        shutil.rmtree(etc)


def test_terminal_hangup_ends_the_task_without_a_reload(someone):
    rules = save(someone, someone.home / "rules" / "web.yaml", FIRST)
    script = "trap 'echo hup > got; exit 0' HUP; echo ready; while :; do sleep 0.05; done"
    terminal = Terminal(someone, rules, script)
    terminal.until(b"ready")
    terminal.hang_up()
    terminal.ended()
    assert (someone.work / "got").read_text() == "hup\n"
    assert len([event for event in someone.events() if event["kind"] == "rules.loaded"]) == 1
