"""A question survives the wire, and its keys tell apart what does something else, and nothing besides."""

import json

import pytest
from msgspec.structs import astuple

from proxy.approvals.approval_request import (
    ApprovalRequest,
    File,
    Kind,
    MalformedMessageError,
    Ref,
    grant_key,
    grant_keys,
)
from rules.decision import GrantScope
from tests.proxy.approvals.sample_requests import (
    ANYONE,
    COMMAND,
    CONNECTION,
    EACH,
    HOURLY,
    MERGE,
    PROGRAM,
    PUSH,
    REQUEST,
    SOURCE,
)

ELSE = {
    "protocol": "http",
    "host": "other.example",
    "port": 8443,
    "method": "PUT",
    "path": "/other",
    "size": 99,
    "websocket": True,
    "secrets": ("forge",),
    "repo": "acme/other",
    "refs": (Ref("refs/heads/main", "delete", "a" * 40, "0" * 40),),
    "argv": ("terraform", "destroy"),
    "files": (File("Makefile", "0" * 64),),
    "total": 2,
    "digest": "0" * 64,
}
ALSO = {
    "process": PROGRAM._replace(pid=8),
    "rules": (ANYONE, HOURLY),
    "revision": "r2",
    "event": "other",
    "tainted_by": (SOURCE,),
    "pattern": "/acme/*",
}


@pytest.mark.parametrize("question", EACH, ids=lambda question: question.kind)
def test_approval_request_is_unchanged_by_a_round_trip(question):
    assert ApprovalRequest.read(json.loads(json.dumps(question.packed()))) == question
    assert question.fitted() == question


def test_every_field_is_in_the_grant_key_or_listed_as_exempt():
    assert {*ELSE, *ALSO, "kind", "cut", "beforehand"} == set(ApprovalRequest.__struct_fields__)


@pytest.mark.parametrize("field", ELSE)
def test_attempt_with_another_effect_has_another_grant_key(field):
    assert grant_key(PUSH._replace(**{field: ELSE[field]}), GrantScope.ATTEMPT) != grant_key(PUSH, GrantScope.ATTEMPT)
    assert not set(grant_keys(PUSH._replace(**{field: ELSE[field]}))[:1]) & set(grant_keys(PUSH))


@pytest.mark.parametrize("field", ALSO)
def test_attempt_with_the_same_effect_has_the_same_grant_key(field):
    assert grant_keys(REQUEST._replace(**{field: ALSO[field]})) == grant_keys(REQUEST)


@pytest.mark.parametrize("number", range(3))
def test_push_of_other_objects_has_another_grant_key(number):
    changed = list(astuple(PUSH.refs[0]))
    changed[number + 1] = "d" * 40
    other = PUSH._replace(refs=(Ref(*changed), *PUSH.refs[1:]))
    assert grant_key(other, GrantScope.ATTEMPT) != grant_key(PUSH, GrantScope.ATTEMPT)
    assert grant_key(PUSH._replace(refs=PUSH.refs[:1]), GrantScope.ATTEMPT) != grant_key(PUSH, GrantScope.ATTEMPT), (
        "nor is a part of it"
    )
    assert grant_key(PUSH._replace(refs=PUSH.refs[::-1]), GrantScope.ATTEMPT) == grant_key(PUSH, GrantScope.ATTEMPT)


def test_arguments_that_join_alike_have_different_grant_keys():
    one, other = (COMMAND._replace(argv=argv) for argv in (("rm", "a b"), ("rm", "a", "b")))
    assert grant_key(one, GrantScope.ATTEMPT) != grant_key(other, GrantScope.ATTEMPT)


def test_pre_request_for_a_push_covers_any_objects():
    refs = tuple(Ref(ref.ref, ref.change) for ref in PUSH.refs)
    pre_request = PUSH._replace(method="", path="", refs=refs, beforehand=True)
    assert grant_key(pre_request, GrantScope.ATTEMPT) in grant_keys(PUSH)
    assert grant_key(PUSH, GrantScope.ATTEMPT) not in grant_keys(pre_request)


def test_grant_without_body_or_secret_covers_no_request_with_one():
    small = REQUEST._replace(size=0)
    for other in (
        small._replace(size=1),
        small._replace(size=None),
        small._replace(secrets=("forge",)),
        small._replace(secrets=("forge", "cloud")),
        PUSH._replace(size=300_000),
        PUSH._replace(secrets=("forge",)),
    ):
        less = PUSH if other.kind is Kind.PUSH else small
        assert grant_key(less, GrantScope.ATTEMPT) not in grant_keys(other)
        assert grant_key(other, GrantScope.ATTEMPT) not in grant_keys(less)


def test_pre_request_covers_any_body_and_secrets():
    pre_request = REQUEST._replace(size=None, beforehand=True)
    for size in (0, 12, None):
        assert grant_key(pre_request, GrantScope.ATTEMPT) in grant_keys(REQUEST._replace(size=size, secrets=("forge",)))
    assert grant_key(REQUEST._replace(size=None), GrantScope.ATTEMPT) not in grant_keys(REQUEST), "unknown is not any"
    bare = pre_request._replace(size=0)
    assert grant_key(bare, GrantScope.ATTEMPT) in grant_keys(REQUEST._replace(size=0))
    assert grant_key(bare, GrantScope.ATTEMPT) not in grant_keys(REQUEST)
    assert grant_key(REQUEST, GrantScope.ATTEMPT) not in grant_keys(pre_request)


def test_wider_scope_covers_narrower_requests():
    other = REQUEST._replace(method="GET", path="/", kind=Kind.CONNECTION)
    assert grant_key(other, GrantScope.DESTINATION) == grant_key(REQUEST, GrantScope.DESTINATION)
    assert grant_key(other._replace(port=80), GrantScope.DESTINATION) != grant_key(REQUEST, GrantScope.DESTINATION)
    assert grant_key(CONNECTION, GrantScope.RULE) == grant_key(REQUEST, GrantScope.RULE)
    assert grant_key(COMMAND, GrantScope.DESTINATION) != grant_key(MERGE, GrantScope.DESTINATION)
    assert grant_key(COMMAND, GrantScope.DESTINATION) != grant_key(
        COMMAND._replace(argv=("rm",)), GrantScope.DESTINATION
    )


def test_narrowest_rule_sets_the_scope():
    assert REQUEST._replace(rules=(HOURLY,)).covers is GrantScope.DESTINATION
    assert REQUEST._replace(rules=(HOURLY, ANYONE)).covers is GrantScope.ATTEMPT
    assert REQUEST._replace(rules=()).covers is GrantScope.ATTEMPT


@pytest.mark.parametrize(
    "more",
    [
        {"path": "/" + "\x01" * 60_000},
        {"argv": ("\U0001f600",) * 20_000},
        {"refs": (Ref("refs/heads/" + "x" * 200, "update", "a" * 40, "b" * 40),) * 500},
        {"files": (File("x" * 1000),) * 100},
    ],
    ids=["path", "argv", "refs", "files"],
)
def test_request_too_long_to_show_is_cut_and_has_no_attempt_key(more):
    fitted = REQUEST._replace(**more).fitted()
    assert fitted.cut
    assert len(json.dumps(fitted.packed(), ensure_ascii=False).encode("utf-8", "surrogatepass")) < 50_000
    assert grant_key(fitted, GrantScope.ATTEMPT) not in grant_keys(fitted)
    assert grant_key(fitted, GrantScope.DESTINATION) in grant_keys(fitted)


def test_long_process_ancestry_does_not_cut_the_attempt():
    fitted = REQUEST._replace(process=PROGRAM._replace(argv=("x" * 1000,) * 500)).fitted()
    assert not fitted.cut
    assert fitted.path == REQUEST.path


def test_request_with_too_many_rules_is_not_submitted():
    with pytest.raises(MalformedMessageError, match="too many rules"):
        REQUEST._replace(rules=(ANYONE,) * 500).fitted()


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "wormhole"},
        {"port": 65536},
        {"port": True},
        {"port": "443"},
        {"size": -1},
        {"size": 1.5},
        {"host": None},
        {"argv": "ls"},
        {"argv": [1]},
        {"websocket": 1},
        {"refs": [{"ref": ""}]},
        {"refs": [{"ref": "x", "force": True}]},
        {"rules": [{"rule": "a", "digest": "d"}]},
        {"surprise": 1},
    ],
    ids=str,
)
def test_malformed_approval_requests_are_refused(broken):
    with pytest.raises(MalformedMessageError):
        ApprovalRequest.read({**PUSH.packed(), **broken})


def test_lone_surrogates_survive_the_round_trip():
    read = ApprovalRequest.read(REQUEST._replace(path="/\ud800\udcff\udfff").packed())
    assert read.path == "/\ufffd\udcff\ufffd"
    assert ApprovalRequest.read(json.loads(json.dumps(read.packed()))) == read


def test_describe_has_one_line_for_each_kind():
    assert [question.line() for question in EACH] == [
        "POST api.example:443/repos",
        "push to git.example:443/acme/web: update refs/heads/main, create refs/tags/v1",
        "tcp db.example:5432",
        "terraform apply -auto-approve",
        "change .ci/run and 1 more file",
    ]
