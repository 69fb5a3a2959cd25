"""What a test lacks is a skip on somebody's machine, and a failure where everything has to be there."""

import pytest

from tests.support import harness


@pytest.mark.parametrize(("ci", "outcome"), [("", "Skipped"), ("true", "Failed")])
def test_what_is_missing_is_skipped_and_in_ci_a_failure(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(BaseException, match="nginx is missing") as raised:
        harness.missing("nginx")
    assert raised.type.__name__ == outcome


def test_nothing_else_skips_a_test_for_want_of_something():
    words = [f"pytest.{word}" for word in ("skip(", "importorskip", "xfail")]
    files = {path: path.read_text() for path in (harness.PROJECT / "tests").rglob("*.py")}
    found = {path.name for path, text in files.items() if any(word in text for word in words)}
    assert found == {"harness.py"}
