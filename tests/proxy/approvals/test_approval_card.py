"""The card: all that a person needs, nothing of a task's that a terminal would obey, and what each answer does."""

import json

from proxy.approvals.approval_card import _decoded
from proxy.approvals.approval_request import File, Ref
from proxy.approvals.protocol import Tainted
from proxy.telemetry.baseline.anomalies import EarlierRuns
from rules.decision import GrantScope
from tests.proxy.approvals.approval_samples import (
    ANYONE,
    ASKS,
    COMMAND,
    CONNECTION,
    HOURLY,
    MERGE,
    PROGRAM,
    PUSH,
    REQUEST,
    SOURCE,
    terms_of,
)
from tests.proxy.approvals.approval_world import ADA

TEXT = """\
{id}  pending: push to git.example:443/acme/web: update refs/heads/main, create refs/tags/v1
  task         t1 (t1) team=web
  started by   starter on host
  process      7 /usr/bin/git: git push, started by /bin/sh < /sbin/init
  repository   acme/web
  ref          update refs/heads/main {a} -> {b}
  ref          create refs/tags/v1 {zero} -> {c}
  sends        a body of unknown size
  destination  tls git.example port 443, asked about once since 2027-01-15: 0 approved, 0 rejected
  rule         web:main-needs-two: why not
  read before  https://forge.example/issues (untrusted, says web:issues)
  asked        0s ago, once; the client waits; open for 61m more
  said         ada approves: looked at it
  wanted       1 more of release, for web:main-needs-two
  exeat        approve {id}  -> allows this very attempt, once, in the next 1h
  exeat        approve {id} --for 1h  -> allows this very attempt, as often as the task likes, in the next 1h
  exeat        approve {id} --for task  -> allows this very attempt, as often as the task likes, until the task ends
  exeat        reject {id}  -> blocks it, and the same request for the next 61m"""


def test_a_push(play, store):
    async def story(world):
        task = await world.task()
        await world.registry.received(task, Tainted(SOURCE))
        _, id_ = await world.held(task, PUSH)
        await world.approve(id_, ADA, why="looked at it")
        card = await world.registry.card(id_)
        names = {"a": "a" * 40, "b": "b" * 40, "c": "c" * 40, "zero": "0" * 40}
        assert card.text() == TEXT.format(id=id_, **names)
        packed = json.loads(json.dumps(card.packed()))
        assert packed["task"]["labels"] == {"team": "web"}
        assert packed["question"]["refs"][0]["new"] == "b" * 40
        assert packed["votes"] == [{"by": "ada", "vote": "approve", "why": "looked at it", "at": card.now}]
        assert packed["missing"] == [{"rule": ASKS.rule, "group": "release", "count": 1}]
        assert packed["tainted_by"][0]["destination"] == SOURCE.destination
        assert await world.registry.card("abcd2345") is None
        known = card._replace(before=EarlierRuns(6, 0))
        assert "  usual        none of 6 earlier runs of `t1` went there\n" in known.text()
        assert known.packed()["earlier_runs"] == {"runs": 6, "times": 0}

    play(story, store)


def test_what_its_rules_want_told_to_nobody_only_who_decides_sees(play):
    async def story(world):
        task = await world.task()
        for question in (PUSH, REQUEST):
            secret = question._replace(
                path="/hooks/s3cret", repo="s3cret/web" if question.repo else "", pattern="/hooks/*"
            )
            _, id_ = await world.held(task, secret)
            await world.registry.seen(id_, world.who(ADA))
            card = await world.registry.card(id_)
            assert "s3cret" in card.text()
            assert "withheld" not in card.text()
            told = card.redacted()
            assert f"`exeat approvals show {id_}`" in told.text()
            assert told.packed()["withheld"]
            kept = told.text() + json.dumps(told.packed())
            assert not any(word in kept for word in ("s3cret", "refs/heads", "b" * 40))
            await world.reject(id_, ADA)
            await world.refused(world.approve(id_, ADA))
        kinds = {"approval.asked", "approval.seen", "approval.answered", "approval.refused"}
        about = [event for event in world.journal.events if event["kind"] in kinds]
        assert {event["kind"] for event in about} == kinds
        assert {event["http"]["path"] for event in about} == {"/hooks/*"}
        said = json.dumps(world.journal.events)
        assert not any(word in said for word in ("s3cret", "refs/heads", "b" * 40))
        same = (await world.registry.card((await world.held(task, PUSH._replace(path="/other")))[1])).redacted()
        assert "refs/heads/main" in same.text()
        assert not same.packed()["withheld"]

    play(story)


def test_what_each_choice_says_is_what_it_does(play):
    async def story(world):
        terms = (terms_of(covers=GrantScope.RULE), terms_of(lasts=0.0), HOURLY.terms)
        for number, one in enumerate(terms):
            task = await world.task(f"t{number}")
            question = CONNECTION._replace(rules=(ANYONE._replace(terms=one._replace(by_self=True)),))
            _, id_ = await world.held(task, question)
            choices = [
                choice for choice in (await world.registry.card(id_)).choices if choice.words.startswith("approve")
            ]
            assert choices
            for choice in choices:
                words, covers = choice.words.split()[2:], ""
                if words[:1] == ["--scope"]:
                    covers, words = words[1], []
                _, id_ = await world.held(task, question)
                decided = await world.approve(id_, ADA, *words[1:], covers=covers)
                assert choice.does == f"allows {decided.text.removeprefix('approved: ')}"
                await world.registry.revoke(id_, world.who(ADA))

    play(story)


def test_rules_that_give_differently_are_told_apart(play):
    async def story(world):
        task = await world.task()
        later = ANYONE._replace(rule="web:later", terms=ANYONE.terms._replace(open=60.0))
        _, id_ = await world.held(task, CONNECTION._replace(rules=(ANYONE, later)))
        assert (await world.registry.card(id_)).choices[0].does == (
            f"allows for {ANYONE.rule} this very attempt, once, in the next 24h; "
            "for web:later this very attempt, once, in the next 1m"
        )

    play(story)


def test_nothing_of_a_task_moves_a_terminal(play):
    hostile = "\x1b]0;owned\x07\u202e\n  rule  fake: fine"

    async def story(world):
        task = await world.task()
        for question in (
            REQUEST._replace(
                method="GET" + hostile, path="/" + hostile, process=PROGRAM._replace(argv=(hostile,), exe=hostile)
            ),
            PUSH._replace(repo=hostile, refs=(Ref("refs/heads/" + hostile, "create", "0", "1"),)),
            COMMAND._replace(argv=(hostile,)),
            MERGE._replace(files=(MERGE.files[0]._replace(path=hostile),)),
        ):
            _, id_ = await world.held(task, question)
            text = (await world.registry.card(id_)).text()
            assert all(line.isprintable() for line in text.split("\n"))
            assert not any(line.startswith("  rule  fake") for line in text.split("\n"))
            assert "\\x1b]0;owned\\x07\\u202e\\x0a" in text

    play(story)


def test_words_stay_apart_and_padding_is_no_line(play):
    padded = "x" + " " * 60 + "  rule         web:ok: harmless"

    async def story(world):
        task = await world.task()
        asked = (
            COMMAND._replace(argv=("plan", "--message=note --dry-run", "apply")),
            COMMAND._replace(argv=(padded,), process=PROGRAM._replace(argv=("a", "b c"), exe=padded)),
            MERGE._replace(files=(File("Makefile (removed)", "f" * 64),)),
        )
        cards = [await world.registry.card((await world.held(task, one))[1]) for one in asked]
        assert "  command      plan '--message=note --dry-run' apply\n" in cards[0].text()
        assert cards[0].text().splitlines()[0].endswith(": plan '--message=note --dry-run' apply")
        text = cards[1]._replace(approval=cards[1].approval._replace(said=padded)).text()
        assert "a 'b c', started by" in text
        known = ("exeat", "asked", "rule", "task", "started by", "process", "command", "agent says", "wanted")
        for line in text.splitlines()[1:]:
            assert line[2:15].rstrip() in known
            assert "  " not in line[15:].replace("  -> ", ""), "wherever a terminal breaks it, no field begins"
        assert f"  file         'Makefile (removed)': nothing -> nothing, SHA-256 {'f' * 64}\n" in cards[2].text()

    play(story)


def test_all_of_what_is_done_is_shown(play):
    async def story(world):
        task = await world.task()
        refs = tuple(Ref(f"refs/heads/b{number}", "update", "a" * 40, f"{number:040x}") for number in range(60))
        files = tuple(File(f"f{number}", f"{number:064x}") for number in range(60))
        for question in (PUSH._replace(refs=refs), MERGE._replace(files=files)):
            text = (await world.registry.card((await world.held(task, question))[1])).text()
            for number in range(60):
                assert (refs[number].new if question.refs else files[number].sha256) in text

    play(story)


def test_what_became_of_it(play):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, CONNECTION)
        await world.approve(id_, ADA, "uses 3", why="migration")
        card = await world.registry.card(id_)
        assert card.choices == ()
        assert "  approved     by ada: migration" in card.text()
        assert f"{card.grants[0].id} for web:db: destination, twice more, for 1h more" in card.text()
        world.hands.pass_(4000)
        await world.registry.expire()
        assert "its time is over" in (await world.registry.card(id_)).text()
        _, id_ = await world.held(task, CONNECTION)
        await world.reject(id_, why="no")
        assert "  rejected     by ada: no" in (await world.registry.card(id_)).text()
        assert "asked about twice since 2027-01-15: 1 approved, 1 rejected" in (await world.registry.card(id_)).text()
        _, late = await world.held(task, REQUEST)
        world.hands.pass_(2 * 86400.0)
        await world.registry.expire()
        assert "  expired      nobody answered in time" in (await world.registry.card(late)).text()
        _, left = await world.held(task, REQUEST)
        await world.registry.leave(task)
        assert "  over         its task has ended" in (await world.registry.card(left)).text()

    play(story)


def test_what_a_worker_calls_a_change_is_no_control_sequence_of_the_approver_s_terminal():
    """Its own word stands where the card names a line, not only where it says what there is."""
    files = (File("Makefile", change="\x1b]0;approved\x07\x85\u202e"),)
    shown = list(_decoded(MERGE._replace(files=files)))
    assert all(line.isprintable() for line in shown)
    assert any("\\x1b]0;approved" in line for line in shown)
