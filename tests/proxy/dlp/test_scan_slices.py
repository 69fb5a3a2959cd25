"""Secret scanning in slices: whatever a text is made of, no slice takes long, and all of the text is looked at."""

import gc
import gzip
from itertools import product
from time import thread_time

import pytest

from proxy.dlp.body_scan import HELD_BACK, SecretLeakError
from proxy.dlp.decodings import make_reader
from proxy.dlp.patterns import PATTERNS
from proxy.event_loop.turn import run_at_once
from rules.verdicts import Scan
from tests.proxy.dlp.leaks_harness import body, broker, take
from tests.proxy.leaky import some
from tests.support.processor_time import check, measured_again

BEHIND = (b"", b" ", b"a" * 30, b"a1B2" * 16, b"a:" + b"b" * 127)  # what may follow a prefix, and is no credential
TOKEN = ("ghp_" + some(36)).encode()


def worst_of(pattern):
    """Text that begins with a pattern's prefixes all over, and goes on as it nearly wants."""
    return [(one * (2 * HELD_BACK // len(one))) for one in map(b"".join, product(pattern.prefixes, BEHIND))]


def slices(work):
    """Return how long each slice took, and what came of them all."""
    times, before = [], thread_time()
    while True:
        try:
            next(work)
        except StopIteration as done:
            return [*times, thread_time() - before], done.value
        finally:
            now = thread_time()
            times.append(now - before)
            before = now


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
@measured_again
def test_slice_cost_is_bounded_for_any_text(pattern):
    gc.disable()
    try:
        for text in worst_of(pattern):
            one = body(Scan.BLOCK, broker())
            times, (free, _) = slices(one.scan(text + bytes(HELD_BACK)))
            check(max(times))
            assert text.startswith(free)
    finally:
        gc.enable()


ENCODED = {
    "references": (b"&#x2F;", {}),
    "references by number": (b"&#43;", {}),
    "escapes of JSON": (rb"\u002f", {}),
    "backslashes": (b"\\" * 7 + b"/", {}),
    "percent signs": (b"%2F&#x2F;%5C%2F", {"form": True}),
    "zeros": (b"\0xoxb-", {}),
    "all at once": (rb"\u002f&#x2F;xoxb-%2F\/" + b"\0", {"form": True}),
    "parts": (
        b"transfer-encoding: base64\ntransfer-encoding: quoted-printable\n=41=\n" + b"aGZf" * 30,
        {"parts": True},
    ),
}


@pytest.mark.parametrize(("text", "said"), ENCODED.values(), ids=ENCODED)
@measured_again
def test_slice_cost_is_bounded_for_any_encoding(text, said):
    one = body(Scan.BLOCK, **said)
    gc.disable()
    try:
        times, _ = slices(one.scan(text * (4 * HELD_BACK // len(text))))
    finally:
        gc.enable()
    check(max(times))


def test_token_behind_near_misses_is_found():
    noise = b"xoxb-" * 20000
    packed = gzip.compress(noise + TOKEN)
    one = body(reader=make_reader(["gzip"]))
    assert take(one, packed) == (packed, ["github-token"])


def test_token_behind_its_own_prefix_is_found():
    """A text that fits a pattern and is none hides no token that begins within it."""
    token = ("xoxb-" + "123456789012-" + some(24)).encode()
    assert take(body(), b"xoxb-" * 1000 + token + bytes(4096))[1] == ["slack-token"]


@pytest.mark.parametrize("before", [b"", b"x" * 1000], ids=["nothing pending", "some has left already"])
def test_reload_between_slices_loses_and_repeats_no_byte(before):
    text = bytes(range(32, 127)) * 1000
    for stop in range(6):  # in the first piece, and behind it
        one = body()
        assert take(one, before)[0] == before
        work = one.scan(text)
        for _ in range(stop):
            next(work)
        one.tighten(Scan.BLOCK)
        free, _ = run_at_once(work)
        more, _ = take(one, text)
        rest, _ = one.end()
        assert free + more + rest == text + text


def test_reload_between_slices_applies_to_later_findings():
    one = body()
    work = one.scan(b"x" * 3 * HELD_BACK + TOKEN + b" " + b"x" * HELD_BACK)
    next(work)
    one.tighten(Scan.BLOCK)
    with pytest.raises(SecretLeakError):
        run_at_once(work)
