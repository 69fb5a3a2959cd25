"""The card: all that a person needs, nothing of a task's that a terminal would obey, and what each answer does."""

import json

from proxy.approvals.approval_card import _decoded
from proxy.approvals.approval_request import File, Ref
from proxy.approvals.protocol import Tainted
from proxy.telemetry.baseline.anomalies import EarlierRuns
from rules.decision import GrantScope
from tests.proxy.approvals.registry_lab import ADA
from tests.proxy.approvals.sample_requests import (
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


def test_card_of_a_push_shows_every_field(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        await lab.registry.received(task, Tainted(SOURCE))
        _, id_ = await lab.submit_pending(task, PUSH)
        await lab.approve(id_, ADA, why="looked at it")
        card = await lab.registry.card(id_)
        names = {"a": "a" * 40, "b": "b" * 40, "c": "c" * 40, "zero": "0" * 40}
        assert card.text() == TEXT.format(id=id_, **names)
        packed = json.loads(json.dumps(card.packed()))
        assert packed["task"]["labels"] == {"team": "web"}
        assert packed["question"]["refs"][0]["new"] == "b" * 40
        assert packed["votes"] == [{"by": "ada", "vote": "approve", "why": "looked at it", "at": card.now}]
        assert packed["missing"] == [{"rule": ASKS.rule, "group": "release", "count": 1}]
        assert packed["tainted_by"][0]["destination"] == SOURCE.destination
        assert await lab.registry.card("abcd2345") is None
        known = card._replace(before=EarlierRuns(6, 0))
        assert "  usual        none of 6 earlier runs of `t1` went there\n" in known.text()
        assert known.packed()["earlier_runs"] == {"runs": 6, "times": 0}

    run_scenario(scenario, store)


def test_withheld_details_are_shown_only_to_the_approver(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        for question in (PUSH, REQUEST):
            secret = question._replace(
                path="/hooks/s3cret", repo="s3cret/web" if question.repo else "", pattern="/hooks/*"
            )
            _, id_ = await lab.submit_pending(task, secret)
            await lab.registry.seen(id_, lab.who(ADA))
            card = await lab.registry.card(id_)
            assert "s3cret" in card.text()
            assert "withheld" not in card.text()
            told = card.redacted()
            assert f"`exeat approvals show {id_}`" in told.text()
            assert told.packed()["withheld"]
            kept = told.text() + json.dumps(told.packed())
            assert not any(word in kept for word in ("s3cret", "refs/heads", "b" * 40))
            await lab.reject(id_, ADA)
            await lab.refused(lab.approve(id_, ADA))
        kinds = {"approval.asked", "approval.seen", "approval.answered", "approval.refused"}
        about = [event for event in lab.journal.events if event["kind"] in kinds]
        assert {event["kind"] for event in about} == kinds
        assert {event["http"]["path"] for event in about} == {"/hooks/*"}
        said = json.dumps(lab.journal.events)
        assert not any(word in said for word in ("s3cret", "refs/heads", "b" * 40))
        same = (await lab.registry.card((await lab.submit_pending(task, PUSH._replace(path="/other")))[1])).redacted()
        assert "refs/heads/main" in same.text()
        assert not same.packed()["withheld"]

    run_scenario(scenario)


def test_each_choice_of_a_card_describes_the_grant_it_makes(run_scenario):
    async def scenario(lab):
        terms = (terms_of(covers=GrantScope.RULE), terms_of(lasts=0.0), HOURLY.terms)
        for number, one in enumerate(terms):
            task = await lab.task(f"t{number}")
            question = CONNECTION._replace(rules=(ANYONE._replace(terms=one._replace(by_self=True)),))
            _, id_ = await lab.submit_pending(task, question)
            choices = [
                choice for choice in (await lab.registry.card(id_)).choices if choice.words.startswith("approve")
            ]
            assert choices
            for choice in choices:
                words, covers = choice.words.split()[2:], ""
                if words[:1] == ["--scope"]:
                    covers, words = words[1], []
                _, id_ = await lab.submit_pending(task, question)
                decided = await lab.approve(id_, ADA, *words[1:], covers=covers)
                assert choice.does == f"allows {decided.text.removeprefix('approved: ')}"
                await lab.registry.revoke(id_, lab.who(ADA))

    run_scenario(scenario)


def test_card_describes_rules_with_different_terms_separately(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        later = ANYONE._replace(rule="web:later", terms=ANYONE.terms._replace(open=60.0))
        _, id_ = await lab.submit_pending(task, CONNECTION._replace(rules=(ANYONE, later)))
        assert (await lab.registry.card(id_)).choices[0].does == (
            f"allows for {ANYONE.rule} this very attempt, once, in the next 24h; "
            "for web:later this very attempt, once, in the next 1m"
        )

    run_scenario(scenario)


def test_card_escapes_control_characters_of_the_task(run_scenario):
    hostile = "\x1b]0;owned\x07\u202e\n  rule  fake: fine"

    async def scenario(lab):
        task = await lab.task()
        for question in (
            REQUEST._replace(
                method="GET" + hostile, path="/" + hostile, process=PROGRAM._replace(argv=(hostile,), exe=hostile)
            ),
            PUSH._replace(repo=hostile, refs=(Ref("refs/heads/" + hostile, "create", "0", "1"),)),
            COMMAND._replace(argv=(hostile,)),
            MERGE._replace(files=(MERGE.files[0]._replace(path=hostile),)),
        ):
            _, id_ = await lab.submit_pending(task, question)
            text = (await lab.registry.card(id_)).text()
            assert all(line.isprintable() for line in text.split("\n"))
            assert not any(line.startswith("  rule  fake") for line in text.split("\n"))
            assert "\\x1b]0;owned\\x07\\u202e\\x0a" in text

    run_scenario(scenario)


def test_card_quotes_arguments_and_collapses_padding(run_scenario):
    padded = "x" + " " * 60 + "  rule         web:ok: harmless"

    async def scenario(lab):
        task = await lab.task()
        asked = (
            COMMAND._replace(argv=("plan", "--message=note --dry-run", "apply")),
            COMMAND._replace(argv=(padded,), process=PROGRAM._replace(argv=("a", "b c"), exe=padded)),
            MERGE._replace(files=(File("Makefile (removed)", "f" * 64),)),
        )
        cards = [await lab.registry.card((await lab.submit_pending(task, one))[1]) for one in asked]
        assert "  command      plan '--message=note --dry-run' apply\n" in cards[0].text()
        assert cards[0].text().splitlines()[0].endswith(": plan '--message=note --dry-run' apply")
        text = cards[1]._replace(approval=cards[1].approval._replace(said=padded)).text()
        assert "a 'b c', started by" in text
        known = ("exeat", "asked", "rule", "task", "started by", "process", "command", "agent says", "wanted")
        for line in text.splitlines()[1:]:
            assert line[2:15].rstrip() in known
            assert "  " not in line[15:].replace("  -> ", ""), "wherever a terminal breaks it, no field begins"
        assert f"  file         'Makefile (removed)': nothing -> nothing, SHA-256 {'f' * 64}\n" in cards[2].text()

    run_scenario(scenario)


def test_card_shows_every_ref_and_file(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        refs = tuple(Ref(f"refs/heads/b{number}", "update", "a" * 40, f"{number:040x}") for number in range(60))
        files = tuple(File(f"f{number}", f"{number:064x}") for number in range(60))
        for question in (PUSH._replace(refs=refs), MERGE._replace(files=files)):
            text = (await lab.registry.card((await lab.submit_pending(task, question))[1])).text()
            for number in range(60):
                assert (refs[number].new if question.refs else files[number].sha256) in text

    run_scenario(scenario)


def test_card_shows_the_outcome_of_the_request(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        await lab.approve(id_, ADA, "uses 3", why="migration")
        card = await lab.registry.card(id_)
        assert card.choices == ()
        assert "  approved     by ada: migration" in card.text()
        assert f"{card.grants[0].id} for web:db: destination, twice more, for 1h more" in card.text()
        lab.clock.advance(4000)
        await lab.registry.expire()
        assert "its time is over" in (await lab.registry.card(id_)).text()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        await lab.reject(id_, why="no")
        assert "  rejected     by ada: no" in (await lab.registry.card(id_)).text()
        assert "asked about twice since 2027-01-15: 1 approved, 1 rejected" in (await lab.registry.card(id_)).text()
        _, late = await lab.submit_pending(task, REQUEST)
        lab.clock.advance(2 * 86400.0)
        await lab.registry.expire()
        assert "  expired      nobody answered in time" in (await lab.registry.card(late)).text()
        _, left = await lab.submit_pending(task, REQUEST)
        await lab.registry.leave(task)
        assert "  over         its task has ended" in (await lab.registry.card(left)).text()

    run_scenario(scenario)


def test_card_escapes_control_characters_in_kinds_of_file_change():
    """Its own word stands where the card names a line, not only where it says what there is."""
    files = (File("Makefile", change="\x1b]0;approved\x07\x85\u202e"),)
    shown = list(_decoded(MERGE._replace(files=files)))
    assert all(line.isprintable() for line in shown)
    assert any("\\x1b]0;approved" in line for line in shown)
