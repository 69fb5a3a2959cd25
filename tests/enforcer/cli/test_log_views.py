"""`exeat log show`, `chain`, `top`, `verify`, `keys`, `retention`, `replay` and the export formats as commands."""

import itertools
import json
import os
import time

import pytest

from enforcer.cli import main
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Http, Kind, Process
from proxy.telemetry.journal.segments import compress
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.views.timeline import timeline_of
from rules.attempt import Protocol
from rules.verdicts import Outcome, Verdict
from tests.support.telemetry_lab import ALLOWED, DENIED, HOSTILE, close, connect, full_event, recorder_lab

PLACE = {"name": "www.example.com", "address": "93.184.216.34", "port": 443, "protocol": Protocol.TLS}
CURL = Process(7, "/usr/bin/curl", ("curl",), 1000, ("/usr/bin/make", "/usr/bin/bash"))


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A task with one allowed request and one blocked connection, and a second task."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    directory = tmp_path / "exeat" / "journal"
    here, other = recorder_lab(directory, "t-1", "migrate"), recorder_lab(directory, "t-2", "build")
    ids = {"started": here.recorder.task_started(["make", "all"])}
    connect(other.recorder, DENIED, name="other.example")
    ids["connection"] = connect(here.recorder, process=CURL)
    more = {**PLACE, "http": Http("GET", "www.example.com", "/a"), "cause": ids["connection"]}
    ids["request"] = here.recorder.decided(Kind.REQUEST_DECIDED, ALLOWED, **more)
    here.recorder.completed(ids["request"], **PLACE, http=Http(status=200), up=1, down=2, seconds=0.1)
    close(here.recorder, ids["connection"])
    ids["refused"] = connect(here.recorder, DENIED, name="evil.example", address="192.0.2.1")
    here.recorder.task_ended(ids["started"], seconds=1.0, status=0)
    here.recorder.journal.close()
    other.recorder.journal.close()
    return directory, ids


def run(capfdbinary, *words):
    status = main(["log", *map(str, words)])
    out, err = capfdbinary.readouterr()
    return status, out.decode(), err.decode()


def ids_of(out):
    return [json.loads(line)["id"] for line in out.splitlines()]


@pytest.mark.parametrize("compressed", [False, True])
def test_filters_by_rule_name_process_and_time(capfdbinary, told, compressed):
    directory, _ = told
    if compressed:
        for path in list(directory.rglob("*.jsonl")):
            compress(path)
    for words, kinds in {
        ("--rule", "web:pages"): ["connection.decided", "request.decided"],
        ("--rule", "pages"): ["connection.decided", "request.decided"],
        ("--rule", "web:*"): ["connection.decided", "request.decided"],
        ("--rule", "page"): [],
        ("--name", "evil.example"): ["connection.decided"],
        ("--name", "EVIL.example"): ["connection.decided"],
        ("--name", "192.0.2.1"): ["connection.decided"],
        ("--name", "*.example"): ["connection.decided", "connection.decided"],
        ("--process", "curl"): ["connection.decided"],
        ("--process", "/usr/bin/make"): ["connection.decided"],
        ("--process", "wget"): [],
        ("--name", "www.example.com", "--verdict", "allow", "--kind", "request.decided"): ["request.decided"],
        ("--until", "1h"): [],
        ("--since", "1h", "--until", "2999-01-01", "--kind", "task.started"): ["task.started"],
        ("--kind", "journal.opened"): ["journal.opened"] * 2,
    }.items():
        status, out, err = run(capfdbinary, "--format", "jsonl", *words)
        assert (status, [json.loads(line)["kind"] for line in out.splitlines()], err) == (0, kinds, ""), words


def test_log_show_prints_all_fields(capfdbinary, told):
    _, ids = told
    status, out, _ = run(capfdbinary, "show", ids["connection"])
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0
    assert (shown["kind"], shown["process.exe"], shown["task.name"]) == (
        "connection.decided",
        "/usr/bin/curl",
        "migrate",
    )
    assert json.loads(run(capfdbinary, "show", ids["connection"], "--format", "json")[1])["id"] == ids["connection"]


def test_wrapped_text_cannot_look_like_a_field(capfdbinary, told):
    directory, _ = told
    here = recorder_lab(directory, "t-1", "migrate")
    asked = connect(here.recorder, DENIED, process=CURL._replace(exe=f"/x{' ' * 60}verdict    allow"))
    here.recorder.journal.close()
    for part, of in (("show", asked), ("chain", asked), ("replay", "migrate")):
        _, out, _ = run(capfdbinary, part, of)
        assert f"/x {'\\x20' * 59}verdict \\x20\\x20\\x20allow" in out


@pytest.mark.parametrize("part", ["show", "chain"])
def test_end_of_an_id_names_its_event(capfdbinary, told, part):
    _, ids = told
    whole = run(capfdbinary, part, ids["connection"])
    assert whole[0] == 0
    for given in (ids["connection"][-12:], ids["connection"][-8:], ids["connection"][:-1]):
        assert run(capfdbinary, part, given) == whole
    begun = ids["connection"][:8]  # which all that happened in the same minute have
    assert (begun, run(capfdbinary, part, begun)[::2]) == (begun, (2, said_of_several(told, begun)))
    assert run(capfdbinary, part, "0123456789ab")[::2] == (
        2,
        "exeat: there is no event `0123456789ab` in the journal\n",
    )


def said_of_several(told, begun):
    directory, _ = told
    lines = [line for path in directory.rglob("0*.jsonl") for line in path.read_bytes().splitlines()]
    count = sum(json.loads(line)["id"].startswith(begun) for line in lines)
    return f"exeat: {count} events have an id like `{begun}`; say more of it\n"


def test_chain_has_the_task_the_connection_and_its_effects(capfdbinary, told):
    _, ids = told
    status, out, err = run(capfdbinary, "chain", ids["request"])
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 6]
    assert [line.split()[1] for line in lines] == ["task", "connect", "GET", "200"]
    assert lines[1].split(" by ")[1].startswith("/usr/bin/curl (process 7)")
    assert lines[2].endswith(f"{ids['request']} <--")
    value = json.loads(run(capfdbinary, "chain", ids["connection"], "--format", "json")[1])
    assert value["task"]["argv"] == ["make", "all"]
    assert [each["event"]["kind"] for each in value["effects"]] == ["request.decided", "connection.closed"]
    assert value["effects"][0]["effects"][0]["event"]["http"]["status"] == 200


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["show"], 2, "which event?"),
        (["chain"], 2, "which event?"),
        (["show", "x"], 2, "`x` is no event's id"),
        (["chain", "\x1b[2J"], 2, "`\\x1b[2J` is no event's id"),
        (["show", "01a1fbac-5503-7e75-bce9-8bc86d516a2a"], 2, "there is no event"),
        (["replay"], 2, "which task?"),
        (["replay", "nobody"], 2, "there is no task `nobody`"),
        (["keys", "lst"], 2, "invalid value `lst` for `exeat log keys`; did you mean `list`?"),
        (["keys"], 2, "there is no key yet"),
        (["retention", "--age", "90"], 2, "invalid value `90` for `--age`: use"),
        (["retention", "--size", "0G"], 2, "`--size`: `0G` is not a size"),
        (["verify", "/nowhere"], 2, "there is no journal in `/nowhere`"),
        (["verify", "--key", "/nowhere"], 2, "cannot read `/nowhere`"),
    ],
    ids=itertools.count(),
)
def test_misuse_of_log_views_is_reported(capfdbinary, told, words, status, said):
    ended, out, err = run(capfdbinary, *words)
    assert (ended, out) == (status, "")
    assert said in err


def test_log_top_counts_the_most_frequent(capfdbinary, told):
    status, out, _ = run(capfdbinary, "top", "--format", "json")
    value = json.loads(out)
    assert status == 0
    assert value["destinations"][0] == {"name": "www.example.com", "attempts": 2, "blocked": 0}
    assert {each["name"]: each["blocked"] for each in value["tasks"]} == {"migrate (t-1)": 1, "build (t-2)": 1}
    assert {each["name"]: each["blocked"] for each in value["reasons"]} == {"rule": 0, "no_rule": 2}
    assert "REASONS" in run(capfdbinary, "top", "--task", "migrate")[1]


def test_replay_of_a_task_prints_its_timeline(capfdbinary, told):
    status, out, _ = run(capfdbinary, "replay", "migrate")
    text = out.splitlines()
    assert status == 0
    assert text[0].startswith("Task `migrate`, t-1 on ")
    assert [line for line in text if "www.example.com:443" in line and line.endswith(": allowed")]
    assert [line for line in text if "who: started by /usr/bin/make < /usr/bin/bash" in line]
    assert [line for line in text if "rules: web:pages say allow" in line]
    refused = next(number for number, line in enumerate(text) if "evil.example" in line)
    assert text[refused].endswith(": blocked")
    assert text[refused + 1].strip() == "why: no_rule, no rule allows this"
    assert text[-1] == "In all 3 attempts, 1 of them blocked."
    assert "other.example" not in out


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Kind.DNS_DECIDED, "held: not the lookup"), (Kind.CONNECTION_DECIDED, "held: not the connection")],
    ids=["lookup", "connection"],
)
def test_lookups_and_connections_with_ask_are_not_held(kind, said):
    event = full_event(kind, "x")._replace(verdict=Verdict.ASK, outcome=Outcome.PASSED, approval=None)
    [held] = [line.strip() for line in timeline_of([event]) if "held" in line]
    assert held.startswith(said)


@pytest.mark.parametrize("shape", ["ocsf", "ecs", "cef"])
def test_export_formats_print_one_line_per_event(capfdbinary, told, shape):
    status, out, _ = run(capfdbinary, "--format", shape, "--task", "migrate")
    assert status == 0
    assert len(out.splitlines()) == 7
    if shape != "cef":
        assert all(json.loads(line) for line in out.splitlines())


@pytest.mark.parametrize(
    "text", [each for each in HOSTILE.values() if each], ids=[name for name, each in HOSTILE.items() if each]
)
def test_hostile_text_is_escaped_in_every_view(capfdbinary, tmp_path, text):
    here = recorder_lab(tmp_path, text, text)
    cause = here.recorder.task_started([text, text])
    process = Process(7, text, (text,), 1, (text,))
    event = connect(here.recorder, DENIED, name=text, address=text, process=process, cause=cause, detail=text)
    connect(here.recorder, ALLOWED, name="plain.example", http=Http(text, text, "/" + text))
    parts = [[], ["show", event], ["chain", event], ["top"], ["replay", "--last"], ["verify"]]
    forms = [["--format", shape] for shape in ("jsonl", "ocsf", "ecs", "cef")]
    forms += [[*part, "--format", "json"] for part in parts[1:4]]
    for words in (*parts, *forms):
        _, out, err = run(capfdbinary, *words, "--journal", tmp_path)
        assert out, words
        lines = (out + err).split("\n")
        assert [line for line in lines if not all(each.isprintable() for each in line)] == [], words
        assert not {"\u202e", "\u2066", "\u200f", "\u200b", "\ufeff"} & set(out), words


def test_verify_accepts_a_signed_journal_and_reports_changes(capfdbinary, told, tmp_path):
    directory, _ = told
    status, out, _ = run(capfdbinary, "verify")
    assert status == 1
    assert "nothing in this journal is signed" in out
    status, made, _ = run(capfdbinary, "keys", "make")
    assert status == 0
    assert run(capfdbinary, "keys", "make")[0] == 2
    assert run(capfdbinary, "keys")[1] == f"{made.strip()}  signs now\n"
    from enforcer.journal.keeper import Keeper
    from enforcer.journal.signing import keeper_directory

    Keeper(directory, keeper_directory(directory), pytest.fail).close((os.getpid(),))
    status, out, _ = run(capfdbinary, "verify")
    assert (status, out.partition(":")[0]) == (0, "intact")
    (tmp_path / "key.pem").write_text(run(capfdbinary, "keys", "export")[1])
    assert run(capfdbinary, "verify", directory, "--key", tmp_path / "key.pem")[0] == 0
    assert run(capfdbinary, "keys", "rotate")[0] == 0
    assert [line.split()[1:] for line in run(capfdbinary, "keys")[1].splitlines()] == [
        ["signed", "before"],
        ["signs", "now"],
    ]
    assert run(capfdbinary, "verify", "--key", tmp_path / "key.pem")[0] == 0
    kept = next(directory.rglob("ledger.jsonl"))
    (tmp_path / "kept").write_bytes(kept.read_bytes())
    assert run(capfdbinary, "verify", "--kept", tmp_path / "kept", "--key", tmp_path / "key.pem")[0] == 0
    path = next(directory.rglob("0001.jsonl"))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"evil.example", b"good.example"))
    status, out, _ = run(capfdbinary, "verify", "--format", "json")
    found = json.loads(out)
    assert (status, found["intact"], [each["gravity"] for each in found["findings"]]) == (1, False, ["tampered"])
    assert "it was changed" in found["findings"][0]["why"]


def test_key_rotation_first_seals_segments_of_killed_writers(capfdbinary, told):
    directory, _ = told
    run(capfdbinary, "keys", "make")
    ago = time.time_ns() - 300 * 1_000_000_000
    writer = Journal(directory)
    for number in range(3):
        writer.append(encode(full_event(Kind.TASK_ENDED, time=ago + number)), ago + number)
    writer.close()
    for segment in directory.rglob("*.jsonl"):
        os.utime(segment, (1, 1))
    assert run(capfdbinary, "keys", "rotate")[0] == 0
    status, out, _ = run(capfdbinary, "verify")
    assert (status, out.partition(":")[0]) == (0, "intact")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["log", "shwo"], "invalid value `shwo` for `exeat log`; did you mean `show`?"),
        (["log", "--format", "oscf"], "invalid value `oscf` for `--format`; did you mean `ocsf`?"),
        (
            ["export", "--to", "file:/x", "--format", "\x1b[2J"],
            "invalid value `\\x1b[2J` for `--format`: use one of `event`",
        ),
        (["changes", "accpt"], "no task `accpt` has changes; did you mean `accept`?"),
    ],
)
def test_mistyped_word_is_reported_with_a_suggestion(capfdbinary, told, words, said):
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said in capfdbinary.readouterr().err.decode()


def test_retention_is_shown_and_changed(capfdbinary, told):
    assert run(capfdbinary, "retention")[1] == "the journal is kept for 365 days, however much it is, by default\n"
    assert (
        run(capfdbinary, "retention", "--age", "90d", "--size", "20G")[1]
        == "the journal is kept for 90 days, up to 20 GiB\n"
    )
    assert run(capfdbinary, "retention", "--age", "none")[1] == "the journal is kept for ever, up to 20 GiB\n"
    directory, _ = told
    old = directory / "2020-01-01"
    old.mkdir()
    (old / "0001.jsonl").write_bytes(b"{}\n")
    segment = next(directory.rglob("0001.jsonl"))
    hour = time.time() - 3600
    segment.chmod(0o400)
    os.utime(segment, (hour, hour))
    assert run(capfdbinary, "retention", "--age", "1w", "--now")[0] == 0
    assert not old.exists()
    _, out, _ = run(capfdbinary, "--kind", "journal.removed", "--format", "jsonl")
    assert json.loads(out)["journal"]["segment"] == "2020-01-01"
