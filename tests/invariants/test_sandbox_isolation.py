"""Invariant 11: sandboxes are isolated. Two runs under one rule file, which search for each other in turns."""

import pytest

from .attempt_network import RULES, dns_names
from .lab_runner import Journal, summary

PAIR = ("ours", "theirs")
TURNS = 3
NAMES_LOOKED_UP = {"ours": 4, "theirs": 1}  # names that each looks up


@pytest.fixture(scope="module")
def sandbox_pair(runner):
    """Results of each step and journal by task, and requests at the origins."""
    runner.lab.origin.name(dns_names())
    runner.lab.origin.forget()
    rules = runner.rules(RULES)
    seen = {who: {} for who in PAIR}
    with (
        runner.start_steps("ours", rules, "neighbour", "marker-ours") as ours,
        runner.start_steps("theirs", rules, "neighbour", "marker-theirs") as theirs,
    ):
        tasks = {"ours": ours, "theirs": theirs}
        for who, other in (PAIR, PAIR[::-1]):
            tasks[who]("begin")
            seen[who]["other"] = other
        for turn in range(TURNS):
            for who in PAIR:
                seen[who].setdefault("speak", []).append(tasks[who]("speak", turn))
        for who in PAIR:
            seen[who]["names"] = tasks[who]("names", NAMES_LOOKED_UP[who])
        places = {who: [str(runner.workspace(who)), str(runner.journal(who))] for who in PAIR}
        seen["ours"]["look"] = ours("look", *places["ours"], *places["theirs"])
        seen["ours"]["knock"] = ours("knock")
        seen["theirs"]["look"] = theirs("look", *places["theirs"], *places["ours"])
        seen["theirs"]["use"] = theirs("use", seen["ours"]["names"])
    for who in PAIR:
        seen[who]["journal"] = Journal(runner.journal(who))
    return seen, runner.lab.origin.requests()


@pytest.mark.parametrize("who", PAIR)
def test_each_sandbox_receives_its_own_responses(sandbox_pair, who):
    seen, _ = sandbox_pair
    for turn, got in enumerate(seen[who]["speak"]):
        assert got.pop("raw") is True
        for way, (target, authority, marker) in got.items():
            zone = way.partition(" ")[0]
            assert (target, authority, marker) == (
                f"/echo?marker-{who}-{turn}",
                f"marker-{who}.more.{zone}.example",
                [f"marker-{who}-{turn}"],
            )


@pytest.mark.parametrize("who", PAIR)
def test_each_journal_has_only_its_own_task(sandbox_pair, who):
    seen, _ = sandbox_pair
    mine, others = seen[who]["journal"], seen[seen[who]["other"]]["journal"]
    tasks = [{(event["task"]["id"], event["sandbox"]) for event in one.events} for one in (mine, others)]
    assert len(tasks[0]) == len(tasks[1]) == 1
    assert tasks[0] != tasks[1]
    assert not {event["id"] for event in mine.events} & {event["id"] for event in others.events}


def test_pool_addresses_of_another_sandbox_are_not_valid(sandbox_pair):
    """A pool address of the other sandbox stands for another name here, or for none."""
    seen, requests = sandbox_pair
    theirs, ours = seen["theirs"], seen["ours"]["names"]
    meaning = {address: name for name, address in theirs["names"].items()}
    assert len(meaning) == 2 * NAMES_LOOKED_UP["theirs"]
    assert set(meaning) < set(ours.values()), "no address means something to both, and none to one alone"
    decided = theirs["journal"].of(kind="connection.decided")[-len(ours) :]
    for (name, address), event in zip(ours.items(), decided, strict=True):
        assert event["destination"].get("name") == meaning.get(address)
        expected = ("unresolved", "ECONNRESET")
        if address in meaning:
            expected = ("rule", "220") if ".raw." in name else ("name_mismatch", "name_mismatch")
        assert (summary(event)[2], theirs["use"][name]) == expected
    assert [one["authority"] for one in requests if one["authority"] in ours] == []


def test_events_do_not_name_hosts_of_the_other_sandbox(sandbox_pair):
    """Except in a ClientHello that the other task itself sends."""
    seen, _ = sandbox_pair
    assert "marker-theirs" not in str(seen["ours"]["journal"].events)
    recorded = [event for event in seen["theirs"]["journal"].events if "marker-ours" in str({**event, "tls": None})]
    assert recorded == []


def test_files_processes_and_sockets_are_not_shared(sandbox_pair):
    seen, _ = sandbox_pair
    for who in PAIR:
        found = str(seen[who]["look"])
        assert f"marker-{who}" in found
        assert f"marker-{seen[who]['other']}" not in found
        assert [line for line in seen[who]["look"]["processes"] if f"marker-{who}" in line] != []
        own, *others = seen[who]["look"]["places"]
        assert ("task" in own, others) == (True, ["ENOENT"] * 3)  # no journal either, its own or the other's
    assert seen["ours"]["knock"] == ["ECONNREFUSED", "ECONNREFUSED"]
