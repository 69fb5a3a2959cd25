"""Programs that need leave to run: which rule is about which words, and what it makes of them."""

import pytest

from rules.explain.explanation import explain
from rules.loading.cases import parse_attempt
from rules.matching.commands import ProgramRun, decide_run
from tests.rules.rule_texts import decide, loaded, policy, problems, told

HEAD = """commands:
  - {id: no-apply, run: "terraform apply*", action: deny, why: "the pipeline does that"}
  - {id: plans, run: "terraform *", action: flag}
  - {id: pushes, run: "git * push", action: ask}
  - {id: forced, run: "git * push * --force*", action: deny}
  - {id: removed, run: /usr/bin/rm, action: deny}
  - {id: teamed, run: kubectl delete, action: deny, for: {labels: {team: data}}}
  - {id: shells, run: "*sh -c *", action: flag}
"""
RULES = "  []"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("terraform apply", "deny rule t:no-apply"),
        ("terraform apply -auto-approve", "deny rule t:no-apply"),
        ("terraform apply-all", "deny rule t:no-apply"),
        ("/opt/tf/terraform apply", "deny rule t:no-apply"),
        ("terraform plan", "flag rule t:plans"),
        ("terraform", "flag rule t:plans"),
        ("terraform -chdir=x apply", "flag rule t:plans"),
        ("terraforms apply", "allow no_command"),
        ("Terraform apply", "allow no_command"),
        ("git push", "ask approval_unavailable t:pushes"),
        ("git -C somewhere push origin", "ask approval_unavailable t:pushes"),
        ("git push origin main --force-with-lease", "deny rule t:forced"),
        ("git pushed", "allow no_command"),
        ("git", "allow no_command"),
        ("/usr/bin/rm -rf /", "deny rule t:removed"),
        ("rm -rf /", "allow no_command"),
        ("/bin/rm -rf /", "allow no_command"),
        ("kubectl delete pod", "allow no_command"),
        ("bash -c x", "flag rule t:shells"),
        ("bash x", "allow no_command"),
    ],
)
def test_command_rule_matches_program_and_arguments(words, expected):
    assert told(decide(RULES, f"run {words}", HEAD)) == expected


def test_command_rule_matches_its_tasks_only():
    assert told(decide(RULES, "run kubectl delete pod", HEAD, labels={"team": "data"})) == "deny rule t:teamed"


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (ProgramRun(("/tmp/innocent", "/opt/terraform"), ("apply",)), "deny rule t:no-apply"),  # a link to it
        (ProgramRun(("/usr/bin/busybox", "/usr/bin/busybox", "terraform"), ("apply",)), "deny rule t:no-apply"),
        (ProgramRun(("/tmp/x", "/usr/bin/rm", "x")), "deny rule t:removed"),
        (ProgramRun((), ("apply",)), "allow no_command"),
        (ProgramRun(("",), ("apply",)), "allow no_command"),
    ],
)
def test_program_is_matched_by_every_name(run, expected):
    assert told(decide_run(policy(RULES, HEAD), run)) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("push", "origin"), "deny rule t:forced"),  # the words that aren't known could be `--force`
        (("status",), "deny rule t:forced"),
        ((), "deny rule t:forced"),
    ],
)
def test_unknown_arguments_could_be_any(words, expected):
    assert told(decide_run(policy(RULES, HEAD), ProgramRun(("git",), words, whole=False))) == expected
    assert (
        told(decide_run(policy(RULES, HEAD), ProgramRun(("terraform",), ("plan",), whole=False))) == "flag rule t:plans"
    )
    assert told(decide_run(policy(RULES, HEAD), ProgramRun(("ls",), (), whole=False))) == "allow no_command"


def test_programs_are_allowed_without_command_rules():
    assert told(decide(RULES, "run terraform apply")) == "allow no_command"


def test_test_cases_can_try_commands():
    from rules.loading.load import failures

    tests = """tests:
  - {attempt: run terraform apply, expect: deny, rule: no-apply}
  - {attempt: run terraform plan, expect: flag}
  - {attempt: run git push, expect: ask, rule: "t:pushes"}
  - {attempt: run ls, expect: allow}
"""
    assert failures(loaded(RULES, HEAD + tests)) == []
    wrong = "tests:\n  - {attempt: run ls, expect: deny}\n  - {attempt: run git push, expect: ask, rule: forced}\n"
    assert len(failures(loaded(RULES, HEAD + wrong))) == 2


def test_explain_names_the_command_rule():
    told = explain(policy(RULES, HEAD), parse_attempt("run terraform apply -auto-approve"))
    assert told.lines() == [
        "`run terraform apply -auto-approve` is denied by `t:no-apply` (`rule`)",
        "the rule says: the pipeline does that",
        "commands are a guard rail: a copied, renamed or interpreted program does not match",
    ]
    assert told.value()["verdict"] == "deny"
    assert told.value()["rules"] == ["t:no-apply"]


@pytest.mark.parametrize("attempt", ["run ", "run", "run  "])
def test_empty_command_is_no_attempt(attempt):
    with pytest.raises(ValueError, match="run"):
        parse_attempt(attempt)


def test_ask_rule_for_a_command_is_granted_by_its_digest():
    head = (
        HEAD
        + """  - {id: two, run: "git push * main", action: ask, why: "it deploys",
     approval: {by: release, count: 2, covers: rule}}
"""
    )
    asked, run = policy(RULES, head), ProgramRun(("git",), ("push", "origin", "main"))
    held = decide_run(asked, run)
    assert held.needs_approval
    assert [(asks.rule, asks.terms.by, asks.terms.by_self, asks.why) for asks in held.approval] == [
        ("t:pushes", None, True, ""), ("t:two", "release", False, "it deploys"),
    ]  # fmt: skip
    pushes, two = (asks.digest for asks in held.approval)
    some = decide_run(asked, run, granted=frozenset({pushes}))
    assert [asks.rule for asks in some.approval] == ["t:two"]
    assert told(decide_run(asked, run, granted=frozenset({pushes, two}))) == "allow approval_granted t:pushes,t:two"
    changed = policy(RULES, head.replace("count: 2", "count: 3"))
    assert [asks.rule for asks in decide_run(changed, run, granted=frozenset({pushes, two})).approval] == ["t:two"]
    forced = ProgramRun(("git",), ("push", "origin", "main", "--force"))
    assert told(decide_run(asked, forced, granted=frozenset({pushes, two}))) == "deny rule t:forced"


def test_granted_command_is_still_flagged():
    head = "commands:\n  - {id: a, run: x, action: ask}\n  - {id: f, run: x y, action: flag}\n"
    asked = policy(RULES, head)
    [asks] = decide_run(asked, ProgramRun(("x",), ("y",))).approval
    granted = decide_run(asked, ProgramRun(("x",), ("y",)), granted=frozenset({asks.digest}))
    assert told(granted) == "flag approval_granted t:f,t:a"


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        ("action: deny, approval: {count: 2}", "`approval` is for commands with `action: ask`, and this is `deny`"),
        ("action: ask, approval: {covers: destination}", "a command has no destination: its approval `covers` the"),
    ],
)
def test_malformed_approval_of_a_command_is_an_error(says, problem):
    [told_of] = problems(RULES, f"commands:\n  - {{id: a, run: x, {says}}}\n")
    assert told_of.startswith(problem)
