"""What root writes while a task runs is in force at once, whatever is wrong with the files of whoever runs the task."""

import os

import pytest

from enforcer.policy import reread, rule_files
from enforcer.service.rule_sets import RuleSets
from proxy.dialing import proxy_auth
from proxy.worker import policy_transfer
from tests.enforcer.policy.rereads import OWN, Run

ROOT = "version: 1\nname: root\n%s\nrules:\n  - {id: no, to: %s, action: deny}\n"
DENIED = "GET https://bad.example/"


@pytest.fixture
def run(tmp_path, monkeypatch):
    for check in ("check_root_owned", "check_path"):  # whoever runs the tests is root here
        monkeypatch.setattr(rule_files, check, lambda _path: None)
    one = Run(tmp_path, ROOT % ("", "worse.example"))
    yield one
    one.close()


WRONG = {
    "broken": lambda run, _: run.own.write_text(OWN.replace("allow", "alow")),
    "gone": lambda run, _: run.own.unlink(),
    "a test that fails": lambda run, _: run.own.write_text(f"{OWN}tests:\n  - {{attempt: '{DENIED}', expect: allow}}\n"),
    "a setting laxer than root's": lambda run, _: run.own.write_text(f"{OWN}settings: {{idle_timeout: 1h}}\n"),
    "a setting that can't change": lambda run, _: run.own.write_text(f"{OWN}settings: {{dns_pool: 198.18.0.0/16}}\n"),
    "root's own name": lambda run, _: run.own.write_text(OWN.replace("web", "root")),
    "never the same twice": lambda _, patch: patch.setattr(reread, "_TRIES", 0),
    "never read": lambda _, patch: patch.setattr(reread, "_read_settled", lambda *_: os._exit(0)),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_in_other_files_do_not_delay_roots_rules(run, monkeypatch, wrong, capfd):
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
    assert "but root's new rules are in force in addition: " in capfd.readouterr().err


def test_roots_rules_apply_over_the_last_valid_policy(run):
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


def test_broken_root_rules_keep_the_rules_in_force(run):
    run.root.write_text("broken")
    [what] = run.reread()
    assert what.keys() == {"rules_rejected"}
    assert not run.gate.policies


def test_service_applies_roots_rules_to_every_running_task(run):
    heard = []

    def publish(_rules, what, descriptors):
        heard.append(what)
        run.gate.send(what, descriptors)

    sets = RuleSets(run.selector, publish, lambda _rules: None)
    system = run.wanted.system
    loaded = rule_files.load([run.own], system)
    asked = rule_files.make_absolute(loaded.searched_paths)
    said = {
        "files": [str(run.own)], "system": str(system), "shared": True, "asked": list(asked),
        "seen": rule_files.fingerprint(asked, system),
    }  # fmt: skip
    with open(os.memfd_create("policy"), "wb") as file:
        proxy_auth.send(None, file)
        policy_transfer.send(loaded.policy, file)
        file.flush()
        rules = sets.add(said, file.fileno())
    assert sets.find([run.own], system) is not None
    run.own.write_text("broken")
    run.root.write_text(ROOT % ("", "bad.example"))
    sets.reload_all()
    run.turns(lambda: heard, turn=sets.turn)
    assert heard[0].keys() == {"set", "revision", "asks"}
    assert run.decided(DENIED) == "deny rule root:no"
    sets.turn()
    assert sets.find([run.own], system) is None, "who starts now reads them, and is told"
    rules.close()
