"""Rule files while they are being written: none is read that is cut off, and the last that was whole stays in force."""

import threading
import time

import pytest

from enforcer.policy import reread
from rules.loading.load import read
from tests.enforcer.policy.rereads import OWN, Run

DENIED = "GET https://bad.example/"
DENY = "  - {id: no, to: bad.example, action: deny}\n"


@pytest.fixture
def run(tmp_path):
    one = Run(tmp_path)
    yield one
    one.close()


def test_file_being_written_is_read_once_complete(run, monkeypatch):
    """Its allow was there already, and its deny not yet."""
    monkeypatch.setattr(reread, "PATIENCE", 0.1)
    with open(run.own, "w", encoding="utf-8") as file:
        file.write(OWN.replace("all,", "more,"))
        file.flush()
        [what] = run.reread()
        assert [problem.partition("` ")[2] for problem in what["rules_rejected"]] == [
            "is still being written; it is read when the writer closes it"
        ]
        run.turns(lambda: False, seconds=1)
        assert len(run.gate.told) == 1, "it is said once"
        file.write(DENY)
    run.turns(lambda: run.gate.policies)
    assert run.decided(DENIED) == "deny rule web:no"


def test_file_of_another_user_is_read_after_a_quiet_moment(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("")

    def none(*_):
        raise PermissionError

    monkeypatch.setattr("fcntl.fcntl", none)
    monkeypatch.setattr(reread, "PATIENCE", 0.0)
    monkeypatch.setattr(reread, "_SETTLED_AFTER", 3600.0)
    assert reread.wait_until_written([str(path), str(tmp_path), str(tmp_path / "gone")]) == str(path)
    monkeypatch.setattr(reread, "_SETTLED_AFTER", 0.0)
    assert reread.wait_until_written([str(path)]) is None


def test_files_rewritten_constantly_allow_nothing(run):
    """Half of what is written is broken, and in between a file is empty, or ends before its deny."""
    whole = [OWN + DENY + f"# {number}\n" for number in range(3)]
    whole = [text.replace("all,", f"all-{number},") for number, text in enumerate(whole)]
    revisions = []
    for text in whole:
        run.own.write_text(text)
        revisions.append(read([run.own]).policy.revision)
    done = threading.Event()

    def write():
        count = 0
        while not done.is_set():
            text = whole[count // 2 % 2] if count % 2 else OWN + "rules: broken"
            with open(run.own, "w", encoding="utf-8") as file:
                file.write(text[: len(OWN)])
                file.flush()
                file.write(text[len(OWN) :])
            count += 1
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    run.turns(lambda: len(run.gate.told) > 1, seconds=6)
    done.set()
    writer.join()
    run.own.write_text(whole[2])
    run.turns(lambda: run.gate.policies and run.gate.policies[-1].revision == revisions[2])
    assert {policy.revision for policy in run.gate.policies} <= set(revisions)
    assert run.decided(DENIED) == "deny rule web:no"
    before, count = run.gate.policies[-1], len(run.gate.told)
    run.own.write_text(OWN + "rules: broken")
    run.turns(lambda: len(run.gate.told) > count)
    assert run.gate.told[-1].keys() == {"rules_rejected"}
    assert run.gate.policies[-1] is before
