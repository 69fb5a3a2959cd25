"""What a test lacks is a skip on somebody's machine, and a failure where everything has to be there."""

import pytest

from tests.support import harness


@pytest.mark.parametrize(("ci", "outcome"), [("", "Skipped"), ("true", "Failed")])
def test_missing_tool_skips_and_fails_in_ci(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(BaseException, match="nginx is missing") as raised:
        harness.missing("nginx")
    assert raised.type.__name__ == outcome


def test_no_test_skips_for_a_missing_tool_otherwise():
    words = [f"pytest.{word}" for word in ("skip(", "importorskip", "xfail")]
    files = {path: path.read_text() for path in (harness.PROJECT / "tests").rglob("*.py")}
    found = {path.name for path, text in files.items() if any(word in text for word in words)}
    assert found == {"harness.py"}
