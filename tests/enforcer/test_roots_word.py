"""What root writes while a task runs is in force at once, whatever is wrong with the files of whoever runs the task."""

import os
import selectors
import time

import pytest

from enforcer import reloading, rereading, rules_in_force
from enforcer.wanted import Wanted
from proxy import handover
from proxy.dialling import proxy_auth
from rules.cases import parse_attempt
from tests.rules.writing import told

OWN = "version: 1\nname: web\nrules:\n  - {id: all, to: '**.example', action: allow}\n"
ROOT = "version: 1\nname: root\n%s\nrules:\n  - {id: no, to: %s, action: deny}\n"
DENIED = "GET https://bad.example/"
WAIT = 30  # seconds for what must happen


class Gate:
    """What a worker was told, and the policies that it was handed."""

    def __init__(self):
        self.told, self.policies = [], []

    def tell(self, what, descriptors=()):
        self.told.append(what)
        for descriptor in descriptors:
            with handover.Copy(os.dup(descriptor)) as file:
                proxy_auth.take(file)
                self.policies.append(handover.take(file))


class Run:
    """One run's rule files, and what looks after them."""

    def __init__(self, base):
        self.own, self.root = base / "web.yaml", base / "etc" / "rules.d" / "root.yaml"
        self.root.parent.mkdir(parents=True)
        (base / "workspace").mkdir()
        self.own.write_text(OWN)
        self.root.write_text(ROOT % ("", "worse.example"))
        self.gate, self.selector = Gate(), selectors.DefaultSelector()
        loaded = rules_in_force.load([self.own], base / "etc")
        asked = reloading.absolute(loaded.asked)
        self.wanted = Wanted(
            ("true",), "web", loaded.policy, (str(self.own),), str(base / "workspace"), system=base / "etc",
            asked=asked, seen=reloading.fingerprint(asked, base / "etc"),
        )  # fmt: skip
        self.reloader = reloading.Reloader(self.wanted, self.gate, lambda _paths: None, self.selector)

    def reread(self):
        """Read the files again; give what the gate was told."""
        before = len(self.gate.told)
        self.reloader.now()
        deadline = time.monotonic() + WAIT
        while len(self.gate.told) == before and time.monotonic() < deadline:
            for key, _ in self.selector.select(min(1.0, self.reloader.wait())):
                key.data()
            self.reloader.turn()
        return self.gate.told[before:]

    def decided(self, attempt):
        policy = self.gate.policies[-1] if self.gate.policies else self.wanted.policy
        return told(parse_attempt(attempt).decide(policy))


@pytest.fixture
def run(tmp_path, monkeypatch):
    for check in ("check_roots", "check_way"):  # whoever runs the tests is root here
        monkeypatch.setattr(rules_in_force, check, lambda _path: None)
    one = Run(tmp_path)
    yield one
    one.reloader.close()
    assert not one.selector.get_map()
    one.selector.close()


WRONG = {
    "broken": lambda run, _: run.own.write_text(OWN.replace("allow", "alow")),
    "gone": lambda run, _: run.own.unlink(),
    "a test that fails": lambda run, _: run.own.write_text(f"{OWN}tests:\n  - {{attempt: '{DENIED}', expect: allow}}\n"),
    "a setting laxer than root's": lambda run, _: run.own.write_text(f"{OWN}settings: {{idle_timeout: 1h}}\n"),
    "a setting that can't change": lambda run, _: run.own.write_text(f"{OWN}settings: {{dns_pool: 198.18.0.0/16}}\n"),
    "root's own name": lambda run, _: run.own.write_text(OWN.replace("web", "root")),
    "never the same twice": lambda _, patch: patch.setattr(rereading, "_TRIES", 0),
    "never read": lambda _, patch: patch.setattr(rereading, "_settled", lambda *_: os._exit(0)),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_other_files_keeps_no_word_of_root_s_out(run, monkeypatch, wrong, capfd):
    assert run.decided(DENIED) == "allow rule web:all"
    WRONG[wrong](run, monkeypatch)
    run.root.write_text(ROOT % ("settings: {idle_timeout: 1m}", "bad.example"))
    [what] = run.reread()
    assert what.keys() == {"rules"}
    [policy] = run.gate.policies
    assert policy.revision == what["rules"]
    assert run.decided(DENIED) == "deny rule root:no"
    assert run.decided("GET https://worse.example/") == "deny rule root:no", "nor opens anything"
    assert run.decided("GET https://good.example/") == "allow rule web:all"
    assert (policy.settings.idle_timeout, len(policy.unread)) == (60.0, 1), "the worker tells what is wrong"
    assert "but what root's files say now is in force besides: " in capfd.readouterr().err


def test_it_is_over_the_last_that_all_files_made_and_gone_with_what_was_wrong(run):
    run.own.write_text(OWN.replace("**.example", "*.example"))
    assert [what.keys() for what in run.reread()] == [{"rules"}]
    run.own.write_text("broken")
    [what] = run.reread()
    assert what.keys() == {"rules_rejected"}, "root's files have nothing new to say"
    run.root.write_text(ROOT % ("", "bad.example"))
    assert [what.keys() for what in run.reread()] == [{"rules"}]
    assert run.decided("GET https://www.good.example/") == "allow rule web:all"
    assert run.decided("GET https://example/") == "deny no_rule", "what was read at the start allowed that"
    [what] = run.reread()
    assert what.keys() == {"rules_rejected"}, "nothing is handed on twice"
    run.own.write_text(OWN)
    assert [what.keys() for what in run.reread()] == [{"rules"}]
    assert run.decided("GET https://worse.example/") == "allow rule web:all"
    assert run.decided(DENIED) == "deny rule root:no"
    assert not run.gate.policies[-1].unread


def test_where_root_s_own_are_wrong_the_rules_in_force_stay(run):
    run.root.write_text("broken")
    [what] = run.reread()
    assert what.keys() == {"rules_rejected"}
    assert not run.gate.policies
