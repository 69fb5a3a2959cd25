# ruff: noqa: PT017 - what an error says is what is tested
"""What is fuzzed of approvals: what a worker says to the registry, and the file that says who may approve."""

import json

from proxy.approvals.approval_card import _decoded
from proxy.approvals.approval_request import ApprovalRequest, MalformedMessageError, grant_keys
from proxy.approvals.approvers_file import parse_people
from proxy.approvals.protocol import PreRequest, Submit, read_registry_message, read_worker_message
from rules.problems import RuleFileError
from tests.proxy.approvals.sample_requests import EACH
from tests.proxy.approvals.test_people import WHOLE
from tests.proxy.approvals.test_protocol import REPLIES, WORDS


def fuzz_word(data: bytes) -> None:
    """Any packet is a word of a worker, which is said in the same way again, or is malformed; so is any reply."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return
    for read in (read_worker_message, read_registry_message):
        try:
            found = read(said)
        except MalformedMessageError as error:
            assert str(error)
            continue
        assert read(json.loads(json.dumps(found.packed()))) == found
        if isinstance(found, Submit):
            _question(found.question)
        if isinstance(found, PreRequest):
            _question(found.attempt.question)


def _question(question: ApprovalRequest) -> None:
    """Whatever a question holds, it has keys, a line and a card that stays on its lines."""
    assert all(len(key) == 64 for key in grant_keys(question))
    assert isinstance(question.line(), str)
    assert all(line.isprintable() for line in _decoded(question))
    fitted = question.fitted()
    assert ApprovalRequest.read(fitted.packed()) == fitted


def fuzz_approvers(data: bytes) -> None:
    """Any file says who may approve, or every problem of it has a place."""
    try:
        found = parse_people(data, "approvers.yaml")
    except RuleFileError as error:
        assert all(problem.line >= 1 for problem in error.problems)
        assert all(line.isprintable() for line in str(error).split("\n"))
        return
    for members in found.groups.values():
        assert members <= found.people.keys() | found.reviewers.keys()


TARGETS = {"word of a worker": fuzz_word, "approvers": fuzz_approvers}
SEEDS: dict[str, list[bytes]] = {
    "word of a worker": [
        json.dumps(said.packed()).encode()
        for said in (*WORDS, *REPLIES, *(Submit(number, question) for number, question in enumerate(EACH)))
    ],
    "approvers": [WHOLE],
}
