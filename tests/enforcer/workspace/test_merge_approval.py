"""Protected changes whose merge people are asked about: what is merged is what was approved, or nothing of it."""

import asyncio
import json
import os
import socket

import pytest

from enforcer.system.errors import HostError
from enforcer.workspace import accept, merge_approval, safe_path
from enforcer.workspace.accept import ChangeRecorder
from enforcer.workspace.change_store import Meta, StoredChanges, find
from enforcer.workspace.merge_decision import ChangeDigest, FileState, MergeInputs
from enforcer.workspace.protected_changes import Protection
from enforcer.workspace.safe_path import EntryType
from proxy.approvals.approval_request import ApprovalRequest, Kind, Rule
from proxy.approvals.model import MERGING, Vote
from proxy.approvals.protocol import Answer, Introduction, Result
from proxy.approvals.store import SqliteStore
from proxy.approvals.votes import CastVote
from proxy.telemetry.events import Kind as Event
from rules.decision import ApprovalTerms, RequiredApproval
from tests.enforcer.workspace.test_git_changes import ADD, Repository, commit_first
from tests.proxy.approvals.registry_lab import ADA, BO, CY, LINTER, STARTER, RegistryLab
from tests.support.harness import whole_lines

RELEASE = Rule.of(
    RequiredApproval("web:sandbox.approval", "d1" * 32, ApprovalTerms("release", lasts=0.0, hold=60.0, open=3600.0))
)
DBA = Rule.of(
    RequiredApproval("org:sandbox.approval", "d2" * 32, ApprovalTerms("dba", lasts=0.0, hold=60.0, open=3600.0))
)
CI = ".github/workflows/ci.yml"


class People:
    """A registry in this process, and what is said to each question while it is held."""

    def __init__(self, base):
        self.loop = asyncio.new_event_loop()
        self.registry = RegistryLab(SqliteStore(base / "approvals.sqlite"))
        self.run(self.registry.registry.open())
        self.questions, self.answers = [], []
        self.says = []  # (uid, whether) in turn
        self.meanwhile = lambda: None
        self.task = "1-2"

    def run(self, what):
        return self.loop.run_until_complete(what)

    def ask(self, question):
        answer = self.run(self._ask(question))
        self.answers.append(answer)
        return answer

    async def _ask(self, question):
        registry = self.registry.registry
        who = Introduction("sandbox-1-2", self.task + MERGING, "agent", {"team": "web"}, STARTER, "host")
        await registry.introduce("merging", who)
        number = await self.registry.submit("merging", question.fitted())
        if (id_ := self.registry.pending(number)) is not None:
            self.questions.append((id_, (await registry.card(id_)).text()))
            for uid, yes in self.says:
                await (self.registry.approve if yes else self.registry.reject)(id_, uid)
            self.meanwhile()
            if self.registry.answer(number) is None:
                self.registry.clock.advance(61.0)
                await registry.expire()
        await registry.leave("merging")
        return self.registry.answer(number)

    def close(self):
        self.run(self.registry.registry.close())
        self.loop.close()


@pytest.fixture
def people(tmp_path):
    made = People(tmp_path)
    yield made
    made.close()


def begin(lab, *rules):
    lab.begin(protected=["**/.github/workflows", "**/.envrc"])
    meta = lab.kept.place / "meta.json"
    fields = json.loads(meta.read_text())
    fields["approval"] = [asks.packed() for asks in rules or (RELEASE,)]
    meta.write_text(json.dumps(fields))
    (lab.kept,) = find()


def merge(lab, people, *protected, ask=None):
    accept.load_changes(lab.kept)
    lab.kept.lock()
    try:
        selection = accept.Selection((), protected or (CI,))
        protection = Protection(lab.kept.meta.protected)
        outcomes = accept.accept(lab.kept, selection, protection, ask or people.ask)
    finally:
        lab.kept.unlock()
    files = [
        each for each in outcomes if each.change.theirs is None or each.change.theirs.what is not EntryType.DIRECTORY
    ]
    return {each.change.path: str(each.method) if each.accepted else each.reason for each in files}


def find_and_merge(lab, people):
    (lab.kept,) = find()
    merge(lab, people)


def events(lab, kind):
    lines = []
    for segment in sorted((lab.work.parent / "journal").glob("*/*.jsonl")):
        lines += [json.loads(line) for line in whole_lines(segment)]
    return [line for line in lines if line["kind"] == kind]


def test_approved_merge_is_applied_and_recorded(lab, people):
    lab.write(CI, "on: push\n")
    begin(lab)
    lab.task_writes(CI, "on: push\nrun: x\n", 0o755)
    lab.task_writes("plain", "p")
    people.says = [(ADA, True)]
    assert merge(lab, people) == {CI: "taken", "plain": "taken"}
    assert lab.files()[CI] == "on: push\nrun: x\n"
    ((id_, card),) = people.questions
    digest = card.partition("content      ")[2][:64]
    assert f"pending: change {CI}\n" in card
    assert "agent (1-2) team=web" in card
    was = "file 0644, 9 bytes -> file 0755, 16 bytes, +1 -0, SHA-256 "
    assert f"  changed      {CI}: {was}{safe_path.digest_of(b'on: push\nrun: x\n')}\n" in card
    assert len(digest) == 64
    assert f"  {'wanted':<12} 1 more of release, for web:sandbox.approval\n" in card
    for kind in ("changes.accepted", "changes.merged"):
        (event,) = events(lab, kind)
        assert event["approval"] == {**event["approval"], "id": id_, "about": "merge", "by": ["ada"]}
    told = [(event["kind"], event["task"]["id"]) for event in people.registry.journal.events]
    assert told == [(f"approval.{step}", "1-2") for step in ("asked", "answered", "used")]


def test_late_answer_serves_only_the_next_accept(lab, people):
    begin(lab)
    lab.task_writes(CI, "evil")
    lab.task_writes("plain", "p")
    said = merge(lab, people)
    ((id_, _),) = people.questions
    assert said == {CI: f"it waits for approval {id_}: accept again when that is given", "plain": "taken"}
    assert CI not in lab.files()
    assert "needs another person" in people.run(people.registry.refused(people.registry.approve(id_, STARTER)))
    people.run(people.registry.approve(id_))
    people.registry.clock.advance(1800.0)
    people.task = "3-4"
    merge(lab, people)
    assert people.answers[-1].result is Result.TIMEOUT, "another task's is none of it"
    people.task = "1-2"
    assert merge(lab, people)[CI] == "taken"
    assert len(people.questions) == 2
    # The very same once more: the grant is used
    (lab.work / CI).unlink()
    (lab.kept.place / "settled.jsonl").unlink()
    assert merge(lab, people)[CI].startswith("it waits for approval ")


def test_expired_answer_serves_no_accept(lab, people):
    begin(lab)
    lab.task_writes(CI, "evil")
    merge(lab, people)
    people.run(people.registry.approve(people.questions[0][0]))
    people.registry.clock.advance(3601.0)
    assert merge(lab, people)[CI].startswith("it waits for approval ")
    assert len(people.questions) == 2
    assert CI not in lab.files()


def other_content(lab):
    lab.task_writes(CI, "worse")


def link_instead(lab):
    (lab.upper / CI).unlink()
    (lab.upper / CI).symlink_to("/etc/passwd")


def other_base(lab):
    lab.write(CI, "the host's")


def gone(lab):
    (lab.work / CI).unlink()


def linked_directory(lab):
    (lab.work / ".github").rename(lab.work / "away")
    (lab.work / ".github").symlink_to("away")


SWAPS = [other_content, link_instead, other_base, gone, linked_directory]


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
def test_file_swapped_during_approval_is_not_merged(lab, people, swap):
    lab.write(CI, "on: push\n")
    begin(lab)
    lab.task_writes(CI, "good!")
    lab.task_writes(".envrc", "good")
    before = {}
    people.says = [(ADA, True)]
    people.meanwhile = lambda: (swap(lab), before.update(lab.files()))
    said = merge(lab, people, CI, ".envrc")
    assert set(said.values()) == {f"it, or what it replaces, is not what was approved as {people.questions[0][0]}: accept again to ask anew"}  # fmt: skip
    assert lab.files() == before, "nor is anything else of that approval"
    people.says, people.meanwhile = [], lambda: None
    said = merge(lab, people, CI, ".envrc")
    assert len(people.questions) == 2, "it is asked anew"
    assert said[".envrc"].startswith("it waits for approval ")


@pytest.mark.parametrize("swap", [other_content, other_base], ids=lambda swap: swap.__name__)
def test_file_swapped_after_the_last_check_is_not_merged(lab, people, swap, monkeypatch):
    lab.write(CI, "on: push\n")
    begin(lab)
    lab.task_writes(CI, "good!")
    people.says = [(ADA, True)]
    tell = ChangeRecorder.record

    def late(teller, kind, *rest, **more):
        if kind is Event.CHANGES_ACCEPTED:
            swap(lab)
        return tell(teller, kind, *rest, **more)

    monkeypatch.setattr(ChangeRecorder, "record", late)
    (said,) = merge(lab, people).values()
    assert said in (
        "it changed after the approval: accept again to ask for a new one",
        "there is no copy",
        "both sides changed the same lines",
    )
    assert lab.files()[CI] == ("the host's" if swap is other_base else "on: push\n")


def test_approvers_of_every_file_must_approve(lab, people):
    begin(lab, RELEASE, DBA)
    lab.task_writes(CI, "x")
    people.says = [(ADA, True)]
    assert merge(lab, people)[CI].startswith("it waits")
    people.run(people.registry.approve(people.questions[0][0], CY))
    assert merge(lab, people) == {CI: "taken"}


def test_protected_files_are_merged_only_with_approval(lab, people):
    begin(lab)
    lab.task_writes(CI, "x")
    lab.task_writes("plain", "p")
    people.says = [(BO, False)]
    assert merge(lab, people) == {CI: f"bo said no to approval {people.questions[0][0]}", "plain": "taken"}
    assert merge(lab, people)[CI].startswith("bo said no")
    assert len(people.questions) == 1, "who is asked often enough gives in"
    people.registry.journal.broken = True
    people.task = "3-4"
    assert "nobody could be asked: " in merge(lab, people)[CI]
    assert events(lab, "approval.refused")[0]["reason"] == "approval_unavailable"
    granted = Answer(1, Result.GRANTED, "forged", ("x",), grants=())
    assert "other terms" in merge(lab, people, ask=lambda _: granted)[CI]
    assert CI not in lab.files()


@pytest.mark.parametrize("terms", [[{}], "web", None, [None], [{"rule": "x"}]], ids=str)
def test_unreadable_terms_block_the_merge(lab, people, terms):
    begin(lab)
    lab.task_writes(CI, "x")
    meta = lab.kept.place / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "approval": terms}))
    with pytest.raises(HostError, match="cannot read"):
        find_and_merge(lab, people)
    assert lab.files() == {}


def test_files_that_would_conflict_are_not_submitted(lab, people):
    lab.write(CI, "one\n")
    begin(lab)
    lab.task_writes(CI, "two\n")
    lab.task_writes(".envrc", "same")
    lab.changes()
    lab.write(CI, "three\n")
    lab.write(".envrc", "same")
    said = merge(lab, people, CI, ".envrc")
    assert said == {CI: "both sides changed the same lines", ".envrc": "already in"}
    assert people.questions == []


def test_file_names_on_a_card_are_escaped(lab, people):
    begin(lab)
    name = ".envrc/\x1b[2J\u202e\n  rule         web:ok  (fine)"
    lab.task_writes(name, "x")
    (lab.upper / ".envrc/out").symlink_to("/etc, SHA-256 0\x07")
    merge(lab, people, name, ".envrc/out")
    ((_, card),) = people.questions
    assert all(line.isprintable() for line in card.split("\n"))
    assert "\\x1b[2J\\u202e\\x0a" in card
    assert not any(line.startswith("  rule         web:ok") for line in card.split("\n"))
    assert "  added        .envrc/out: nothing -> link to '/etc, SHA-256 0\\x07'\n" in card
    assert card.index(".envrc/out") < card.index("\\x1b[2J", card.index("content  ")), "links are shown first"


@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_card_of_many_paths_shows_some_and_counts_all(lab, people):
    begin(lab)
    wanted = [
        ChangeDigest(f".envrc/{'x' * 200}{n}", "added", FileState(), FileState(EntryType.LINK, 0, "a"))
        for n in range(100_000)
    ]
    with MergeInputs.open(lab.kept) as sides:
        question = merge_approval.make_request(sides, {}, wanted)
        some = merge_approval.make_request(sides, {}, wanted[:1000])
        wanted[777] = wanted[777]._replace(now=FileState(EntryType.LINK, 0, "b"))
        other = merge_approval.make_request(sides, {}, wanted[:1000])
    assert (question.total, question.cut, question.kind) == (100_000, False, Kind.MERGE)
    assert some.files == other.files
    assert len({question.digest, some.digest, other.digest}) == 3
    assert question._replace(rules=(RELEASE,)).fitted() == question._replace(rules=(RELEASE,))
    people.ask(question._replace(rules=(RELEASE,)))
    ((_, card),) = people.questions
    assert len(card) < 100_000
    assert f"100000 paths, and {100_000 - len(question.files)} of them are not shown here" in card
    assert question.digest in card


def test_metadata_without_terms_is_read(lab):
    lab.begin()
    (kept,) = find()
    assert isinstance(kept, StoredChanges)
    assert Meta(**{**json.loads((kept.place / "meta.json").read_text()), "approval": ()}).asks() == ()
    assert os.stat(kept.place).st_mode & 0o077 == 0, "nobody else writes there"


SAID = [
    # what the registry says over the pair and over the connection, and why nothing is merged
    ([], [], "the approvals server has stopped"),
    ([], [{"failed": "the store is down", "status": 125}], "the store is down"),
    ([{"type": "pending", "number": 1, "approval": "abc", "until": 1.0}], [], "the approvals server has stopped"),
    (
        [{"type": "answer", "number": 2, "result": "granted", "grants": [{"rule": "a", "digest": "b", "grant": "c"}]}],
        [],
        "has stopped",
    ),
    ([{"type": "answer", "number": 1, "result": "granted"}], [], "grants nothing"),
    (["hello"], [], "malformed message"),
    ([{"type": "state", "done": {"tainted": False, "tainted_by": []}}], [], "has stopped"),
]


@pytest.mark.parametrize(("words", "last", "why"), SAID, ids=range(len(SAID)))
@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_every_registry_answer_but_a_grant_blocks_the_merge(lab, monkeypatch, words, last, why):
    begin(lab)
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    for (theirs, _), said in zip(pairs, (last, words), strict=True):
        for word in said:
            theirs.send(json.dumps(word).encode())
        theirs.shutdown(socket.SHUT_WR)
    introduced = []
    monkeypatch.setattr(
        merge_approval.registration, "introduced", lambda who, *_: introduced.append(who) or (pairs[0][1], pairs[1][1])
    )
    answer = merge_approval.submit(lab.kept.meta, ApprovalRequest(Kind.MERGE, rules=(RELEASE,)), lambda *_: None)
    assert answer.result is Result.UNAVAILABLE
    assert why in answer.why
    assert introduced[0].task == "1-2/changes"
    for theirs, _ in pairs:
        theirs.close()


def test_reviewer_program_votes_on_merges(lab, people):
    begin(lab, RELEASE._replace(terms=RELEASE.terms._replace(needed=2)))
    lab.task_writes(CI, "x")
    merge(lab, people)
    ((id_, _),) = people.questions
    decide = people.registry.registry.decide
    people.run(decide(id_, CastVote(LINTER, Vote.APPROVE)))
    assert merge(lab, people)[CI].startswith("it waits")
    people.run(people.registry.approve(id_, BO))
    assert merge(lab, people) == {CI: "taken"}
    assert events(lab, "changes.merged")[-1]["approval"]["by"] == ["reviewer linter", "bo"]


def test_merge_grant_serves_once(lab, people):
    begin(lab)
    lab.task_writes(CI, "x")
    merge(lab, people)
    ((id_, card),) = people.questions
    for words in (["task"], ["1h"], ["uses 2"]):
        assert "one use and no more" in people.run(people.registry.refused(people.registry.approve(id_, ADA, *words)))
    wider = people.registry.refused(people.registry.approve(id_, ADA, covers="rule"))
    assert "is wider" in people.run(wider)
    assert card.count("-> merges this very attempt, once, in the next") == 1
    assert "--for" not in card
    assert "\n  lines        `exeat changes " in card


@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_card_shows_protected_files_of_commits(lab, people, tmp_path):
    Repository(lab, commit_first(tmp_path)).task(f"{ADD}; rm -r .git/logs .github")
    meta = lab.kept.place / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "approval": [RELEASE.packed()]}))
    (lab.kept,) = find()
    people.says = [(ADA, True)]
    outcomes = merge(lab, people)
    assert outcomes[".git/refs/heads/main"] == outcomes[".git/index"] == "taken"
    [(_, card)] = people.questions
    assert CI in card
    assert ".git/refs/heads/main" in card
