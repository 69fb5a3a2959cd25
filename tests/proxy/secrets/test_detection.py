"""What is looked for as it is known: values, however they are encoded, whole and in pieces."""

import base64
from urllib.parse import quote

import pytest

from proxy.event_loop.turn import run_at_once
from proxy.secrets.detection import WHOLE, OwnSecrets
from tests.proxy.dlp.leaks_harness import FOUND, NOISE, PLACEHOLDER, VALUE, b64, broker
from tests.proxy.leaky import some

SHORT = b"hunter2-hunter2"
MOST = "most of the value of the secret `key`, in one request or in several"


def take(watch, text):
    """Look at a text, and say what was found."""
    run_at_once(watch.search(text))
    return watch.found()


def looking_for(*value):
    return OwnSecrets(broker(*value).values_to_find)


def taken(own, *texts):
    """What is found in one request that is sent so."""
    watch = own.watch()
    found = [name for text in texts for name in take(watch, text)]
    watch.has_left()
    return found


ENCODED = {
    "as it is": VALUE,
    "in another case": VALUE.swapcase(),
    "in percent signs": quote(VALUE, safe="").encode(),
    "every byte in percent signs": b"".join(b"%%%02x" % byte for byte in VALUE),
    "percent signs twice": b"".join(b"%%25%02X" % byte for byte in VALUE),
    "hexadecimal": VALUE.hex().encode(),
    "hexadecimal, upper case": VALUE.hex().upper().encode(),
    "hexadecimal in lines": VALUE.hex(" ").encode(),
    "base64": b64(VALUE),
    "base64, one byte on": b64(VALUE, b"a", b"z"),
    "base64, two bytes on": b64(VALUE, b"ab", b"zz"),
    "base64 for URLs": base64.urlsafe_b64encode(b"abc" + VALUE),
    "base64 in lines": base64.encodebytes(b"x" * 70 + VALUE + b"y" * 70),
    "base64 in lines, in JSON": base64.encodebytes(b"x" * 70 + VALUE).replace(b"\n", b"\\n"),
    "in JSON": b'{"a": "' + VALUE + b'"}',
}


@pytest.mark.parametrize("text", ENCODED.values(), ids=ENCODED)
def test_value_is_found_in_every_encoding(text):
    assert taken(looking_for(), b"before " + text + b" after") == [FOUND]


HARMLESS = {
    "nothing": b"", "a part": VALUE[:20], "a placeholder": PLACEHOLDER.encode(), "noise": NOISE, "noise in base64": b64(NOISE),
    "backwards": VALUE[::-1], "a percent sign": b"%", "percent signs": b"%%%zz",
}  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_other_text_is_not_found(text):
    assert taken(looking_for(), text) == []


@pytest.mark.parametrize("at", range(1, len(VALUE)))
def test_value_split_over_two_requests_is_found(at):
    for ways in (lambda text: text, lambda text: text.hex().encode(), b64):
        own = looking_for()
        first, second = taken(own, b"a=" + ways(VALUE[:at])), taken(own, b"b=" + ways(VALUE[at:]))
        assert MOST in first + second or FOUND in first + second


def test_second_part_of_a_value_is_found_until_forgotten():
    own = looking_for()
    half = len(VALUE) // 2
    assert taken(own, VALUE[:half]) == []
    for _ in range(5):
        assert taken(own, b"nothing") == []
        assert taken(own, VALUE[half:]) == [MOST]
    for _ in range(1001):
        assert taken(own, b"nothing") == []
    assert taken(own, VALUE[half:]) == []


def test_withheld_pieces_do_not_count_as_sent():
    own = looking_for()
    half = len(VALUE) // 2
    watch = own.watch()
    assert list(take(watch, VALUE[:half])) == []  # and this request is blocked for something else
    assert taken(own, VALUE[half:]) == []
    assert taken(own, VALUE[:half]) == [MOST]


def test_value_split_over_three_requests_is_found():
    own = looking_for()
    third = len(VALUE) // 3
    said = [taken(own, part) for part in (VALUE[:third], VALUE[third : 2 * third], VALUE[2 * third :])]
    assert said == [[], [], [MOST]]


def test_interrupted_value_is_found():
    assert taken(looking_for(), VALUE[:24] + b"-" + VALUE[24:]) == [MOST]


def test_short_value_is_found_only_whole():
    own = looking_for(SHORT, PLACEHOLDER)
    assert taken(own, SHORT[:8]) + taken(own, SHORT[8:]) == []
    assert taken(own, SHORT) == [FOUND]


def test_common_prefix_of_values_is_no_piece():
    own = looking_for(("github" + "_pat_" + some(30)).encode(), "github" + "_pat_" + some(30))
    assert taken(own, b"github" + b"_pat_") == []
    assert not any(form.startswith(b"github") for form, bit in own._values[0].folded if bit != WHOLE)


def test_no_repr_shows_a_value():
    own = looking_for()
    assert repr(own) == "OwnSecrets(...)"
    with pytest.raises(TypeError):
        __import__("pickle").dumps(own)
