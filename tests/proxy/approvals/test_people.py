"""approvers.yaml: who is who, and every way to write it wrong, told with its place."""

import os

import pytest

from proxy.approvals import approvers_file as file
from proxy.approvals.approval_request import Kind
from proxy.approvals.approvers_file import parse_people, read_people
from proxy.approvals.people import NotificationTarget, PendingLimits, People, Person, Secret, StoreLocation, hash_token
from proxy.approvals.postgres_store import is_local
from rules.problems import RuleFileError
from tests.proxy.approvals.registry_lab import USERS
from tests.proxy.approvals.sample_requests import ANYONE, PUSH, REQUEST
from tests.support.harness import PROJECT

TOKEN = "exeat_" + "0123456789abcdef" * 2
HASH = hash_token(TOKEN)
WHOLE = f"""version: 1
people:
  - {{name: ada, user: ada}}
  - {{name: bo, uid: 1002, tokens: ["{HASH}"], oidc: "idp|bo"}}
groups:
  release: [ada, bo, linter]
  alone: ada
reviewers:
  - {{name: linter, command: [/usr/local/bin/review, --strict], rules: ["web:*"], kinds: [request, push], timeout: 20s}}
notify:
  - {{webhook: "https://chat.example/hook", shape: slack, secret: {{file: /etc/exeat/hook.key}}}}
  - command: [/usr/bin/logger]
bounds: {{pending_per_task: 5, pending: 50}}
store: {{url: "postgresql://exeat@db.example/approvals", password: /etc/exeat/db, ca: /etc/exeat/ca.pem}}
""".encode()


def test_file_with_every_key_is_read():
    found = parse_people(WHOLE, "approvers.yaml")
    assert found.people == {
        "ada": Person("ada", user="ada"),
        "bo": Person("bo", uid=1002, tokens=(HASH,), oidc="idp|bo"),
    }
    assert found.groups == {"release": {"ada", "bo", "linter"}, "alone": {"ada"}}
    linter = found.reviewers["linter"]
    assert (linter.command, linter.kinds, linter.timeout) == (
        ("/usr/local/bin/review", "--strict"), (Kind.REQUEST, Kind.PUSH), 20.0,
    )  # fmt: skip
    assert found.notices == (
        NotificationTarget("https://chat.example/hook", "slack", Secret("/etc/exeat/hook.key")),
        NotificationTarget(command=("/usr/bin/logger",)),
    )
    assert found.bounds == PendingLimits(5, 50)
    assert found.store == StoreLocation("postgresql://exeat@db.example/approvals", "/etc/exeat/db", "/etc/exeat/ca.pem")


def test_people_are_found_by_uid_and_token():
    people = parse_people(WHOLE, "approvers.yaml")._replace(name_of=lambda uid: USERS.get(uid, ""))
    assert people.by_uid(1001).name == "ada"
    assert people.by_uid(1002).name == people.by_token(TOKEN).name == "bo"
    assert not people.by_uid(4711, "host").known
    assert people.by_uid(4711, "host").name == "uid 4711@host"
    assert people.by_token(TOKEN + "x") is None
    assert people.by_token("") is None
    assert people.by_token(HASH) is None, "what is kept of it is not it"
    assert people.by_token(hash_token("")) is None


def test_without_a_file_only_the_owner_is_known():
    people = People(owner=1001, name_of=lambda uid: USERS.get(uid, ""))
    assert people.by_uid(1001).known
    assert not people.by_uid(1002).known
    assert not People().by_uid(0).known


def test_reviewers_are_matched_by_rule_and_kind():
    people = parse_people(WHOLE, "approvers.yaml")
    names = [[one.name for one in people.reviewers_of(question)] for question in (
        REQUEST, PUSH, REQUEST._replace(kind=Kind.CONNECTION),
        REQUEST._replace(rules=(ANYONE, ANYONE._replace(rule="other:x"))),
    )]  # fmt: skip
    assert names == [["linter"], ["linter"], [], []]


WRONG = {
    "people: [{name: ada, user: ada}]": "1:1: this version of exeat reads `version: 1` and no other",
    "": "1:1: the file is empty",
    "version: 1\nusers: []": "2:1: `users` is not a key of the approvers; did you mean `people`?",
    "version: 1\npeopel: []": "2:1: `peopel` is not a key of the approvers; did you mean `people`?",
    "version: 1\npeople: [{name: ada}]": "2:10: a person needs `user`, `uid`, `tokens` or `oidc`",
    "version: 1\npeople: [{user: ada}]": "2:10: a person needs `name`",
    "version: 1\npeople: [{name: ada, user: x, token: y}]": "2:31: `token` is not a key of a person; did you mean `tokens`?",
    "version: 1\npeople: [{name: ada, tokens: secret}]": "2:30: `secret` is no hash of a token",
    "version: 1\npeople: [{name: ada, uid: -1}]": "2:27: `-1` is no uid",
    "version: 1\npeople: [{name: ada, user: x}, {name: ada, user: y}]": "2:32: `ada` is here twice",
    "version: 1\npeople: [{name: ada, user: x}, {name: bo, user: x}]": "`ada` and `bo` have the same `user`",
    "version: 1\npeople: [{name: ada, user: x}]\ngroups: {release: [adda]}": "3:19: `adda` is no person and no reviewer; did you mean `ada`?",
    "version: 1\ngroups: {release: []}": "3:19: `groups` is empty".replace("3:", "2:"),
    "version: 1\ngroups: [release]": "2:9: `groups` is a mapping",
    "version: 1\nreviewers: [{name: r, command: [/x]}]": "2:13: a reviewer needs `rules`",
    "version: 1\nreviewers: [{name: r, rules: '*'}]": "2:13: a reviewer needs either `command` or `webhook`",
    "version: 1\nreviewers: [{name: r, rules: '*', command: [x]}]": "`x` must be the whole path of a program",
    "version: 1\nreviewers: [{name: r, rules: '*', command: [/x], timeout: 1h}]": "a review takes 120s at most",
    "version: 1\nreviewers: [{name: r, rules: '*', command: [/x], kinds: [reqest]}]": "did you mean `request`?",
    "version: 1\nreviewers: [{name: ada, rules: '*', command: [/x]}]\npeople: [{name: ada, user: a}]": "`ada` is a person too",
    "version: 1\nnotify: [{webhook: 'http://chat.example/'}]": "would go over the network in the clear",
    "version: 1\nnotify: [{webhook: 'ftp://chat.example/'}]": "is no URL of a webhook",
    "version: 1\nnotify: [{command: [/x], shape: slack}]": "`shape` belongs to a `webhook`",
    "version: 1\nnotify: [{webhook: 'https://c.example/', secret: {}}]": "a secret comes from a `file`",
    "version: 1\nbounds: {pending_per_task: 0}": "is not a number between 1",
    "version: 1\nbounds: {pending_per_task: 5, pending: 4}": "`pending_per_task` is more than `pending`",
    "version: 1\nstore: {}": "2:8: the store needs `url`",
    "version: 1\nstore: {url: 'mysql://db/x'}": "is no URL of a PostgreSQL server",
    "version: 1\nstore: {url: 'postgresql://u:p@db/x'}": "has a password in it",
    "version: 1\nstore: {url: 'postgresql://u@db/x?sslmode=disable'}": "and nothing else",
    "version: 1\nstore: {url: 'postgresql://u@db/'}": "names no database",
    "version: 1\nstore: {url: 'postgresql://u@db/x', password: pw}": "`pw` must be a whole path",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_malformed_files_are_refused_with_their_line(text):
    with pytest.raises(RuleFileError) as caught:
        parse_people(text.encode(), "approvers.yaml")
    assert WRONG[text] in str(caught.value)
    assert "p@" not in str(caught.value) or "u:p@" in text


def test_file_writable_by_others_is_refused(tmp_path):
    file = tmp_path / "approvers.yaml"
    file.write_bytes(WHOLE)
    file.chmod(0o644)
    assert read_people(file).people
    file.chmod(0o664)
    with pytest.raises(RuleFileError, match="others can write it"):
        read_people(file)
    os.unlink(file)
    os.mkfifo(file)
    with pytest.raises(RuleFileError, match="not a file"):
        read_people(file)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("postgresql://u@/x?host=/run/postgresql", True),
        ("postgresql://u@127.0.0.1/x", True),
        ("postgresql://u@[::1]:5433/x", True),
        ("postgresql://u@localhost/x", False),
        ("postgresql://u@db.example/x", False),
        ("postgresql://u@db.example/x?host=/run/postgresql", False),
        ("postgresql://u@/x?host=db.example", False),
        ("postgresql://u@/x", False),
    ],
)
def test_only_local_databases_connect_without_tls(url, local):
    assert is_local(url) is local


def test_every_key_is_documented_and_the_example_is_valid():
    text = (PROJECT / "docs/reference/approvals.md").read_text()
    keys = {*file.FILE_KEYS, *(key for keys in file.KEYS.values() for key in keys)}
    section = text.partition("## Who may approve: approvers.yaml")[2].partition("## Where it is kept")[0]
    assert {key for key in keys if key not in section + text.partition("## Where it is kept")[2]} == set()
    example = section.partition("```yaml\n")[2].partition("```")[0].replace("sha256:…", HASH)
    assert parse_people(example.encode(), "approvers.yaml").groups["release"] == {"ada", "bo", "linter"}
