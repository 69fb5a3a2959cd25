"""What every run is forked with is no larger than what runs use."""

import gc
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from enforcer.cli import run as run_command
from enforcer.cli import status_of_output_error
from enforcer.cli.parsing import Parser
from enforcer.policy.rule_files import LoadedRules
from enforcer.run import sandbox_spec
from enforcer.sandbox import identity, task_start
from enforcer.service import preload, run_setup
from enforcer.service.run_setup import RunCommand
from enforcer.worker import trust
from rules.loading.load import read
from tests.soak import leftovers
from tests.support.waiting import wait_until

COMMAND = RunCommand(
    Parser.of("run", run_command.ARGUMENTS).read,
    run_command.make_run_request,
    run_command.perform,
    status_of_output_error,
)
PROGRAM = """
import enforcer.cli.service, enforcer.service.service, importlib, sys
from enforcer.service.preload import MODULES
for name in MODULES:
    importlib.import_module(name)
print(*sorted({"asyncio", "cryptography", "mitmproxy", "pyroute2", "random", "shutil", "ssl", "tempfile", "threading"} & set(sys.modules)))
"""


def test_service_loads_no_large_module_that_runs_skip():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_runs_in_a_service_import_nothing(tmp_path):
    """Each would pay for it in time and memory: half of the sandboxes a second were once lost so."""
    rules, control, log = tmp_path / "rules.yaml", tmp_path / "service/control", tmp_path / "log"
    rules.write_text("version: 1\nname: none\nrules: []\n")
    (tmp_path / "work").mkdir()
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "EXEAT_CONTROL": str(control)}
    exeat = Path(sys.executable).with_name("exeat")
    with log.open("w") as errors:
        words, told = [exeat, "up", "--workers", "1"], {"PYTHONPROFILEIMPORTTIME": "1"}
        up = subprocess.Popen(words, env={**env, **told}, stderr=errors)
    try:
        wait_until(lambda: "serving with" in log.read_text(), "the service")
        words = [exeat, "run", "--rules", rules, "--quiet", "--", "true"]
        for first in (True, False):  # the first has the rules read
            done = subprocess.run(words, env=env, cwd=tmp_path / "work", stderr=subprocess.PIPE, text=True, timeout=60)
            assert done.returncode == 0
            assert first or re.findall(r"\| +((?:enforcer|proxy|rules)\..*)", done.stderr) == []
    finally:
        up.terminate()
        up.wait()
    assert re.search(r"\| +enforcer\.run\.task\n", log.read_text())  # else imports are not told


@pytest.fixture
def way(tmp_path, monkeypatch):
    """A way that can be walked, what of it was, and what there was before."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state/exeat/cache").mkdir(parents=True, mode=0o700)
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nname: known\nrules: []\n")
    seen = SimpleNamespace(rules=rules, composed=[], written=[], taken=[], system=tmp_path / "etc")
    compose, give_up = sandbox_spec.compose, task_start.drop_rights

    def composed(who, wanted, own, shown):
        seen.composed.append(wanted)
        return compose(who, wanted, own, shown)

    def written(task, who, program, stdio):
        seen.written.append(program.argv)
        return give_up(task, who, program, stdio)

    monkeypatch.setattr(
        trust, "cached_authority", lambda *_: trust.PublicAuthority(_CERTIFICATE, "0123abcd.0", 1e12, [])
    )
    monkeypatch.setattr(sandbox_spec, "compose", composed)
    monkeypatch.setattr(trust, "trusted_roots", lambda *_: (b"roots", b"store"))
    monkeypatch.setattr(task_start, "drop_rights", written)
    monkeypatch.setattr(preload, "take_settings", seen.taken.append)
    seen.who = identity.choose()
    if seen.who.slot >= 0:
        os.close(seen.who.slot)
    gc.collect()  # what other tests have left open goes now, and not in between
    seen.files, seen.open = _files(tmp_path), os.listdir("/proc/self/fd")
    return seen


_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def _files(place):
    return sorted(path.relative_to(place) for path in Path(place).rglob("*"))


def _known(way, policy):
    return SimpleNamespace(
        newest_files=lambda: (way.rules,), find=lambda files, _: (1, LoadedRules(policy, (), "")) if files else None
    )


def test_rehearsed_start_leaves_nothing_behind(way, tmp_path):
    assert preload.warm_up(way.system, COMMAND)
    assert {wanted.argv for wanted in way.composed} == set(way.written) == {("true",)}
    assert len(way.composed) == len(way.written) > 1
    kept = [path for path in _files(tmp_path) if path.name.startswith("network-")]  # what every sandbox is made with
    assert (sorted(_files(tmp_path)), os.listdir("/proc/self/fd"), way.taken) == (
        sorted(way.files + kept),
        way.open,
        [],
    )


def test_service_makes_and_ends_empty_sandboxes(way, monkeypatch):
    made, ended = [], []
    monkeypatch.setattr(
        preload, "make_empty_sandbox", lambda **how: made.append(run_setup.make_empty_sandbox(**how)) or made[-1]
    )
    before, close = set(leftovers.children(os.getpid())), run_setup.EmptySandbox.close
    monkeypatch.setattr(run_setup.EmptySandbox, "close", lambda each: ended.append(close(each)))
    assert preload.warm_up(way.system, COMMAND)
    assert len(made) == len(ended) > 1
    assert set(leftovers.children(os.getpid())) == before
    assert [each.resource_limits.groups for each in made] == [()] * len(
        made
    )  # a service stays in the cgroup that it is in


def test_warm_process_rehearses_once_with_known_rules(way, tmp_path):
    variables = dict(os.environ)
    preload.self_test(_known(way, read([way.rules]).policy), way.system, way.who, COMMAND)
    assert [wanted.rules for wanted in way.composed] == [(str(way.rules),)]
    assert way.written == [("true",)]
    assert [(asked.environment, asked.ignored) for asked in way.taken] == [(variables, 0)]
    assert (_files(tmp_path), os.listdir("/proc/self/fd")) == (way.files, way.open)


@pytest.mark.parametrize("wrong", ["nothing known", "unknown by now", "no CA", "a bug", "an exit"])
def test_errors_of_a_rehearsal_are_left_to_the_start(way, tmp_path, monkeypatch, wrong):
    sets = _known(way, read([way.rules]).policy)
    if wrong == "nothing known":
        sets.newest_files = tuple
    elif wrong == "unknown by now":
        sets.find = lambda _files, _system: None
    elif wrong == "no CA":
        monkeypatch.setattr(trust, "cached_authority", lambda *_: None)
    else:
        error = ZeroDivisionError() if wrong == "a bug" else SystemExit(2)
        monkeypatch.setattr(sandbox_spec, "compose", lambda *_, **__: (_ for _ in ()).throw(error))
    preload.self_test(sets, way.system, way.who, COMMAND)
    assert way.written == []
    assert (_files(tmp_path), os.listdir("/proc/self/fd")) == (way.files, way.open)


def test_failed_rehearsal_is_reported(way, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(way.rules / "missing"))
    assert not preload.warm_up(way.system, COMMAND)
