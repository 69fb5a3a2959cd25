"""One reader for all JSON that others say: what Python's own takes for a number or raises, this refuses."""

import json
import re
from pathlib import Path

import pytest

from proxy.wire import strict_json
from tests.support.hostile_numbers import TOO_LARGE

TAKEN = [("0", 0), ("-1", -1), (str(strict_json.MOST), 2**64 - 1), (str(strict_json.LEAST), -(2**63)), ("1e308", 1e308)]


@pytest.mark.parametrize(("text", "value"), TAKEN)
def test_number_of_64_bits_or_a_double_is_read(text, value):
    assert strict_json.loads(f"[{text}]") == strict_json.loads(f"[{text}]".encode()) == [value]


@pytest.mark.parametrize("text", TOO_LARGE, ids=lambda text: text[:12])
def test_number_out_of_range_is_refused(text):
    with pytest.raises(ValueError, match=r"number|JSON"):
        strict_json.loads(f'{{"a": {text}}}')


WRONG = {"lists": "[" * 100_000, "objects": '{"a":' * 100_000, "no text": b"\xff", "nothing": "", "a mark": "\ufeff[]"}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_malformed_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=""):
        strict_json.loads(text)


@pytest.mark.parametrize("text", TOO_LARGE, ids=lambda text: text[:12])
def test_exporter_reads_out_of_range_numbers_as_null(text):
    """Whoever can write into a journal must not stop an export with one line."""
    assert strict_json.without_misfits(f'{{"a": {text}, "b": [1, 1.5]}}') == {"a": None, "b": [1, 1.5]}


def test_lone_surrogate_stands_for_a_byte():
    said = {"path": "a\udcff"}
    assert strict_json.loads(json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass")) == said


def test_production_reads_json_only_through_strict_json():
    """A second one would take NaN, infinity and numbers without end again."""
    root = Path(__file__).parents[3]
    code = [file for floor in ("rules", "proxy", "enforcer") for file in (root / floor).rglob("*.py")]
    used = {str(file.relative_to(root)) for file in code if re.search(r"(?<!strict_)json\.loads?\(", file.read_text())}
    assert used == set()
