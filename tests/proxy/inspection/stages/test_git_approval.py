"""Pushes of real git that need approval: pending, then done, or denied with a reason that git shows."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from proxy.approvals.approval_request import Ref
from proxy.approvals.protocol import Submit
from proxy.inspection import decide_request
from proxy.inspection.stages import git as pushes
from tests.proxy.approvals.people_harness import People
from tests.proxy.inspection.git_forge import RULES
from tests.support.git_pushes import MAIN
from tests.support.waiting import wait_until


def rules(forge, pushed, *more):
    """The rules of the forge, with a rule that allows pushes of `pushed` once approved."""
    granted = "{id: out, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/tls], action: allow, git: {repos: ['acme/*'], push: ['PUSHED']}}"
    written = "\n".join(
        [*RULES.splitlines()[:-1], granted.replace("PUSHED", pushed), *(f", {rule}" for rule in more), "]"]
    )
    return written.replace("PORT", str(forge.site.port))


class PushLab:
    """A client that pushes in a thread, and its approvers."""

    def __init__(self, forge, people, loop, pool):
        self.forge = forge
        self.people = people
        self._loop = loop
        self._pool = pool

    def push(self, *refs, **more):
        return self._pool.submit(self.forge.remote, "push", "origin", *refs, **more)

    def approval_id(self, count=1):
        wait_until(lambda: len(self.people.asked()) >= count)
        return self.people.asked()[count - 1]

    def run(self, function, *arguments):
        return self._loop.run(function, *arguments)

    def approval_requests(self):
        return [word.question for word in self.people.said if isinstance(word, Submit)]


@pytest.fixture
def push_lab(forge, gate, tmp_path):
    people = People(tmp_path)
    gate.rules(rules(forge, "refs/heads/main"))
    channel = gate.loop.run(people.open)
    gate.loop.run(lambda: people.behind(gate.recorder, gate.dialer.poller, channel))
    with ThreadPoolExecutor(2) as pool:
        yield PushLab(forge, people, gate.loop, pool)
    gate.loop.run(gate.inspection.close)
    gate.loop.run(gate.sandbox.approvals.close)
    gate.loop.run(people.close)


def test_push_passes_once_approved_and_the_next_push_asks_again(push_lab):
    forge = push_lab.forge
    new = forge.run_git("rev-parse", "HEAD")
    old = forge.run_git("-C", forge.root / "acme/web.git", "rev-parse", "main")
    done = push_lab.push("HEAD:main")
    id_ = push_lab.approval_id()
    assert [request.method for request in forge.site.origin.requests] == ["GET"]  # of the push itself nothing has left
    push_lab.run(push_lab.people.approve, id_, "uses 9")
    assert done.result(60).returncode == 0, done.result().stderr
    assert forge.run_git("-C", forge.root / "acme/web.git", "rev-parse", "main") == new
    (question,) = push_lab.approval_requests()
    assert (question.kind, question.repo, question.refs) == ("push", "acme/web", (Ref(MAIN, "update", old, new),))
    forge.run_git("commit", "-q", "--allow-empty", "-m", "third")  # what is approved are these objects
    done = push_lab.push("HEAD:main", http="HTTP/2")
    id_ = push_lab.approval_id(2)
    push_lab.run(push_lab.people.reject, id_, "wait for the release")
    result = done.result(60)
    assert result.returncode == 1
    assert "remote: exeat: wait for the release" in result.stderr
    assert f"remote: exeat: what became of it: GET http://exeat.internal/requests/{id_}" in result.stderr
    assert "! [remote rejected] HEAD -> main (exeat: a person rejected it (t:main))" in result.stderr
    assert forge.pushes() == [
        ("passed", "approval_granted", ["t:main", "t:out"]),
        ("blocked", "approval_denied", ["t:main"]),
    ]


def test_timed_out_push_names_its_approval_and_its_retry_passes(push_lab):
    done = push_lab.push("HEAD:main")
    id_ = push_lab.approval_id()
    push_lab.run(push_lab.people.advance, 121)
    result = done.result(60)
    assert result.returncode == 1
    assert (
        f"remote: exeat: it waits for approval {id_}: try the same again, which passes once that is given, or asks again"
        in result.stderr
    )
    push_lab.run(push_lab.people.approve, id_)
    again = push_lab.push("HEAD:main").result(60)
    assert again.returncode == 0, again.stderr


def test_push_of_two_refs_is_pending_as_a_whole(push_lab):
    forge = push_lab.forge
    done = push_lab.push("HEAD:refs/heads/feature/x", "HEAD:main")
    id_ = push_lab.approval_id()
    (question,) = push_lab.approval_requests()
    assert sorted(ref.ref for ref in question.refs) == ["refs/heads/feature/x", MAIN]
    assert forge.refs() == [MAIN]
    push_lab.run(push_lab.people.approve, id_)
    assert done.result(60).returncode == 0, done.result().stderr
    assert forge.refs() == ["refs/heads/feature/x", MAIN]


@pytest.fixture
def refs_decided_at_once(monkeypatch):
    """Count the refs that each decision on a push decides at once, not in slices before it."""
    of_ref, judge_push = pushes._of_ref, decide_request.decide_push
    counts = []
    decided = 0

    def counted(*arguments):
        nonlocal decided
        decided += 1
        return of_ref(*arguments)

    def judged(*arguments):
        before = decided
        try:
            return judge_push(*arguments)
        finally:
            counts.append(decided - before)

    monkeypatch.setattr(pushes, "_of_ref", counted)
    monkeypatch.setattr(decide_request, "decide_push", judged)
    return counts


def many_refs():
    return ["HEAD:main", *(f"HEAD:refs/heads/feature/{number}" for number in range(pushes.FEW_REFS))]


def test_approved_push_of_many_refs_is_decided_in_slices(push_lab, refs_decided_at_once):
    done = push_lab.push(*many_refs())
    push_lab.run(push_lab.people.approve, push_lab.approval_id())
    assert done.result(60).returncode == 0, done.result().stderr
    assert refs_decided_at_once == [0, 0]


def test_pending_push_of_many_refs_is_reviewed_in_slices(push_lab, gate, refs_decided_at_once):
    done = push_lab.push(*many_refs())
    push_lab.approval_id()
    gate.rules(rules(push_lab.forge, "refs/heads/main").replace("id: main", "id: other"))
    conversations = gate.inspection._engine._connections
    push_lab.run(lambda: [one.session.approvals.decide_again() for one in conversations.values()])
    push_lab.run(push_lab.people.approve, push_lab.approval_id(2))
    assert done.result(60).returncode == 0, done.result().stderr
    assert refs_decided_at_once == [0, 0, 0]


def test_partly_denied_push_requests_no_approval(push_lab):
    result = push_lab.push("HEAD:refs/heads/x", "HEAD:main").result(60)
    assert result.returncode == 1
    assert push_lab.forge.pushes() == [("blocked", "no_rule", [])]
    assert push_lab.people.asked() == []


def test_push_and_its_advertisement_make_one_approval_request(push_lab, gate):
    """The advertisement before a push needs no approval of its own."""
    forge = push_lab.forge
    every = "{id: all, to: good.example, ports: [PORT/tls], action: ask, git: {repos: ['acme/*'], push: ['refs/**']}}"
    gate.rules(rules(forge, "refs/**", every))
    done = push_lab.push("HEAD:refs/heads/feature/x")
    id_ = push_lab.approval_id()
    assert [request.method for request in forge.site.origin.requests] == ["GET"]
    assert [question.kind for question in push_lab.approval_requests()] == ["push"]
    push_lab.run(push_lab.people.approve, id_)
    assert done.result(60).returncode == 0, done.result().stderr


def test_advertisement_needs_approval_where_fetch_is_not_allowed(push_lab, gate):
    """The path is chosen by the task, so it could carry data out."""
    port = push_lab.forge.site.port
    gate.rules(
        f"[{{id: all, to: good.example, resolves_to: [127.0.0.0/8], ports: [{port}/tls], action: ask, "
        "git: {repos: ['acme/*'], push: ['refs/**']}}]"
    )
    done = push_lab.push("HEAD:main")
    id_ = push_lab.approval_id()
    (question,) = push_lab.approval_requests()
    assert (question.kind, question.method) == ("request", "GET")
    assert push_lab.forge.site.origin.connections == 0
    push_lab.run(push_lab.people.reject, id_)
    assert done.result(60).returncode == 128


@pytest.mark.parametrize("quiet", ["features", "main", "features main"])
def test_only_refs_under_log_pattern_are_left_out_of_events(push_lab, gate, quiet):
    """Holds for the deciding ref and others, also after an approval request and a reload."""
    forge, refs = push_lab.forge, {"features": "refs/heads/feature/x", "main": MAIN}

    def written(action):
        found = rules(forge, "refs/heads/main").replace("action: ask", action)
        for one in quiet.split():
            found = found.replace(f"{{id: {one},", f"{{id: {one}, log: pattern,")
        return found

    gate.rules(written("action: ask"))
    done = push_lab.push(f"HEAD:{refs['features']}", "HEAD:main")
    id_ = push_lab.approval_id()
    (question,) = push_lab.approval_requests()
    hidden = {refs[one] for one in quiet.split()}
    assert {ref.ref for ref in question.refs if ref.quiet} == hidden
    assert {ref.ref for ref in question.redacted().refs} == (set() if len(hidden) == 2 else set(refs.values()) - hidden)
    gate.rules(written("action: deny"))
    push_lab.run(push_lab.people.approve, id_)
    assert done.result(60).returncode == 1
    decided = gate.events("request.decided")[-1]
    assert (decided["reason"], decided["approval"]["id"]) == ("rule", id_)
    assert not any(ref in str(decided) for ref in hidden)
    if len(hidden) == 2:
        assert (decided["http"]["path"], "git" in decided) == ("/**", False)
    else:
        (other,) = set(refs.values()) - hidden
        assert [ref.split(" ")[1] for ref in decided["git"]["refs"]] == [other, "more]"]
        assert decided.get("detail", "") == (f"of 2 refs, `{MAIN}` (update) decides" if other == MAIN else "")
