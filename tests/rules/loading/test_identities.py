"""`for` selects tasks, and identities.yaml says who may use which names and labels."""

import pytest

from rules.attempt import Caller
from rules.loading.identities import parse_identities
from rules.problems import RuleFileError
from rules.values.names import HostName
from tests.rules.rule_texts import decide, policy, told

X = "GET https://x.example/"
GOOD = "- {id: g, to: '**.example', action: allow}\n"


def only(selector, action="allow", more=""):
    return f"- {{id: a, to: x.example, for: {selector}, action: {action}}}\n{more}"


DATA = {"team": "data"}
ROWS = [
    # for whom, action and other rules; task and labels; what is decided
    ("{tasks: web}", "allow", "", "web", {}, "allow rule t:a"),
    ("{tasks: web}", "allow", "", "", {}, "deny no_rule"),  # who doesn't say who it is isn't meant
    ("{tasks: web}", "allow", "", "webx", {}, "deny no_rule"),
    ("{tasks: web}", "allow", "", "Web", {}, "deny no_rule"),
    ("{tasks: '*'}", "allow", "", "anything", {}, "allow rule t:a"),
    ("{tasks: '*'}", "allow", "", "", {}, "deny no_rule"),
    ("{tasks: 'migrate-*'}", "allow", "", "migrate-7", {}, "allow rule t:a"),
    ("{tasks: 'migrate-*'}", "allow", "", "migrate", {}, "deny no_rule"),
    ("{tasks: ['a*z', b]}", "allow", "", "a-to-z", {}, "allow rule t:a"),
    ("{tasks: ['a*z', b]}", "allow", "", "b", {}, "allow rule t:a"),
    ("{labels: {team: data}}", "allow", "", "", DATA, "allow rule t:a"),
    ("{labels: {team: data}}", "allow", "", "", {"team": "web"}, "deny no_rule"),
    ("{labels: {team: data}}", "allow", "", "", {"Team": "data"}, "deny no_rule"),
    ("{labels: {team: [data, web]}}", "allow", "", "", {"team": "web"}, "allow rule t:a"),
    ("{labels: {team: 'd*'}}", "allow", "", "", DATA, "allow rule t:a"),
    ("{labels: {team: '*'}}", "allow", "", "", {}, "deny no_rule"),
    ("{labels: {team: data, env: dev}}", "allow", "", "", DATA, "deny no_rule"),
    ("{labels: {team: data, env: dev}}", "allow", "", "", {**DATA, "env": "dev"}, "allow rule t:a"),
    ("{tasks: web, labels: {team: data}}", "allow", "", "web", {}, "deny no_rule"),
    ("{tasks: web, labels: {team: data}}", "allow", "", "web", DATA, "allow rule t:a"),
    # what holds back matches only those that it names
    ("{tasks: web}", "deny", GOOD, "web", {}, "deny rule t:a"),
    ("{tasks: web}", "deny", GOOD, "", {}, "allow rule t:g"),
    ("{tasks: web}", "ask", GOOD, "web", {}, "ask approval_unavailable t:a"),
    ("{tasks: web}", "ask", GOOD, "other", {}, "allow rule t:g"),
    ("{tasks: web}", "flag", GOOD, "web", {}, "flag rule t:a"),
    ("{tasks: web}", "flag", GOOD, "other", {}, "allow rule t:g"),
    ("{labels: {team: data}}", "deny", GOOD, "", DATA, "deny rule t:a"),
]  # fmt: skip


@pytest.mark.parametrize(("selector", "action", "more", "task", "labels", "expected"), ROWS)
def test_rule_matches_tasks_by_label(selector, action, more, task, labels, expected):  # noqa: PLR0917 - a row
    assert told(decide(only(selector, action, more), X, task=task, labels=labels)) == expected


def test_nearest_rule_of_another_task_names_for():
    near = decide(only("{tasks: 'migrate-*', labels: {team: data}}"), X, task="web").nearest
    assert near == ("t:a", "for", "tasks migrate-* and team=data", "another task")


EXEMPT = [
    ("- {id: a, to: x.example, except: [{for: {tasks: web}}], action: allow}", "web", {}, "deny no_rule"),
    ("- {id: a, to: x.example, except: [{for: {tasks: web}}], action: allow}", "db", {}, "allow rule t:a"),
    ("- {id: a, to: x.example, except: [{for: {tasks: web}}], action: deny}\n" + GOOD, "web", {}, "allow rule t:g"),
    ("- {id: a, to: x.example, except: [{for: {tasks: web}}], action: deny}\n" + GOOD, "", {}, "deny rule t:a"),
    ("- {id: a, to: x.example, except: [{for: {tasks: web}, http: {methods: [GET]}}], action: deny}\n" + GOOD, "web", {}, "allow rule t:g"),
    ("- {id: a, to: x.example, except: [{for: {tasks: web}, http: {methods: [PUT]}}], action: deny}\n" + GOOD, "web", {}, "deny rule t:a"),
    ("- {id: a, to: '**.example', except: [{to: x.example, for: {labels: {team: data}}}], action: allow}", "", DATA, "deny no_rule"),
    ("- {id: a, to: '**.example', except: [{to: x.example, for: {labels: {team: data}}}], action: allow}", "", {}, "allow rule t:a"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "task", "labels", "expected"), EXEMPT)
def test_rule_excludes_tasks_by_label(rules, task, labels, expected):
    assert told(decide(rules, X, task=task, labels=labels)) == expected


def test_decisions_are_cached_per_task():
    asked = policy(only("{tasks: web}"))
    x = HostName("x.example")
    assert asked.for_matters
    assert not policy(GOOD).for_matters
    for task in ("web", "db", "web", ""):
        assert asked.decide_name(x, Caller(task)).passes is (task == "web")


def test_many_tasks_leave_caches_bounded():
    asked = policy(only("{tasks: 'web-*'}") + "- {id: b, to: x.example, for: {labels: {n: '1*'}}, action: deny}")
    for n in range(2000):
        asked.decide_name(HostName("x.example"), Caller(f"web-{n}", {"n": str(n)}))
    candidates = asked._index.candidates(HostName("x.example"))
    assert len(candidates._caller_keys) <= 256
    assert len(candidates.lookups) <= 4


IDENTITIES = """\
version: 1
identities:
  - {users: [alice, "1000"], tasks: ["migrate-*", nightly], labels: {team: data, env: [staging, dev]}, required: [team]}
  - {groups: [web], tasks: "*", labels: {team: web}}
"""

CLAIMS = [
    ("alice", (), "nightly", {"team": "data"}, ""),
    ("alice", (), "migrate-1", {"team": "data", "env": "dev"}, ""),
    ("1000", (), "migrate-1", {"team": "data"}, ""),
    ("alice", (), "deploy", {"team": "data"}, "for the user `alice` the task name `deploy` is not allowed"),
    ("alice", (), "", {"team": "data"}, "for the user `alice` a task needs a name"),
    ("alice", (), "nightly", {}, "for the user `alice` a task needs the label `team`"),
    ("alice", (), "nightly", {"team": "web"}, "the task label `team=web` is not allowed"),
    ("alice", (), "nightly", {"team": "data", "env": "prod"}, "the task label `env=prod` is not allowed"),
    ("alice", (), "nightly", {"team": "data", "other": "x"}, "the task label `other=x` is not allowed"),
    # one entry has to cover all of it
    ("alice", ("web",), "deploy", {"team": "web"}, ""),
    ("alice", ("web",), "deploy", {"team": "data"}, "the task name `deploy` is not allowed"),
    ("bob", ("web",), "anything", {}, ""),
    ("bob", (), "anything", {}, "no identity in the file covers the user `bob`: add one, or the user can start no task"),
    ("root", (), "nightly", {}, "no identity in the file covers the user `root`"),
]  # fmt: skip


@pytest.mark.parametrize(("user", "groups", "task", "labels", "problem"), CLAIMS)
def test_identities_restrict_who_claims_labels(user, groups, task, labels, problem):
    refused = parse_identities(IDENTITIES.encode(), "identities.yaml").refuse(user, task, labels, groups)
    assert problem in refused
    assert bool(problem) == bool(refused)


BROKEN = [
    ("", "1:1: the file is empty"),
    ("identities: []", "reads `version: 1`"),
    ("version: 1", "`identities` must be a list"),
    ("version: 1\nidentities: [{users: a}]", "an identity needs `tasks`"),
    ("version: 1\nidentities: [{tasks: a}]", "an identity needs `users`, `groups` or both"),
    ("version: 1\nidentities: [{user: a, tasks: b}]", "`user` is not a key of an identity; did you mean `users`?"),
    ("version: 1\nidentities: [{users: [], tasks: b}]", "`users` is empty"),
    ("version: 1\nidentities: [{users: a, tasks: b, required: [team]}]", "`team` is required, and `labels` does not list"),
    ("version: 1\nidentities: [{users: a, tasks: b, labels: [team]}]", "`labels` is a mapping"),
    ("version: 1\nidentities: &a [*a]", "anchors"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "part"), BROKEN)
def test_broken_identities_file_blocks_every_start(text, part):
    with pytest.raises(RuleFileError) as error:
        parse_identities(text.encode(), "identities.yaml")
    assert part in str(error.value)
    assert str(error.value).startswith("identities.yaml:")
