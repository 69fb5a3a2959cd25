"""The patterns one by one: what each finds, what it nearly finds, and that no text makes any slow."""

import re
import string
from pathlib import Path
from re import _constants as sre  # what an expression is made of

import pytest

from proxy.dlp.body_scan import HELD_BACK, LOOKED_AT
from proxy.dlp.decodings import MOST_UNPACKED
from proxy.dlp.patterns import BEGINS_WORD, LONGEST, PATTERNS, entropy, find_credentials
from proxy.secrets.detection import FEWEST_PIECES, FORGOTTEN_AFTER, SHORTEST_PIECE
from tests.proxy.leaky import KINDS, TOKEN, some

_parse = re._parser.parse  # the tree of an expression: there is no public way to see it


def found(text, **more):
    return [hit.name for hit in find_credentials(text.encode(), **more)]


@pytest.mark.parametrize(("kind", "hit", "near"), KINDS, ids=[f"{n}-{row[0]}" for n, row in enumerate(KINDS)])
def test_patterns_match_samples_and_not_near_misses(kind, hit, near):
    for around in ("{}", 'a "{}" b', "x={}&y=1", "line\n{}\nline", '{{"k": "{}"}}'):
        assert kind in found(around.format(hit)), around
        assert found(around.format(near)) == [], around


def test_every_pattern_has_a_hit_and_a_near_miss():
    assert {row[0] for row in KINDS} == {pattern.name for pattern in PATTERNS}


def test_every_kind_and_bound_is_documented():
    page = (Path(__file__).parents[3] / "docs/reference/rules.md").read_text()
    said = page.split("\n### Leaks\n")[1].split("\n### ")[0]
    kinds = said.split("**Kinds.**")[1].split("\n\n")[0]
    assert re.findall(r"`([\w-]+)`", kinds) == [pattern.name for pattern in PATTERNS]
    for bound in (
        f"{HELD_BACK >> 10} KB",
        f"first {LOOKED_AT >> 10} KB",
        f"{MOST_UNPACKED >> 20} MB",
        f"{FORGOTTEN_AFTER:,} requests",
        f"{SHORTEST_PIECE * FEWEST_PIECES} secret characters",
    ):
        assert bound in said.replace("\n", " "), bound


def test_every_prefix_is_searched():
    for pattern in PATTERNS:
        for prefix in pattern.prefixes:
            row = next(row for row in KINDS if row[0] == pattern.name)
            own = next(p.decode() for p in pattern.prefixes if p.decode() in row[1])
            assert pattern.name in found(row[1].replace(own, prefix.decode())), prefix


def test_findings_have_exact_bounds():
    for _, text, _ in KINDS:
        for hit in find_credentials(b"  " + text.encode() + b"  "):
            assert 0 < hit.end - hit.start <= LONGEST
            assert hit.start >= 2
    assert max(_longest(pattern) for pattern in PATTERNS) <= LONGEST


def _longest(pattern):
    return max(map(len, pattern.prefixes)) + _parse(pattern.rest).getwidth()[1]


# how services are logged in to: a credential in its place
IN_PLACE = [f"/a?token={TOKEN}", f"/a?x=1&access_token={TOKEN}", f"/a?api%5Fkey={TOKEN}", f"/?jwt={KINDS[-5][1]}", f"client_secret={TOKEN}&grant=x", f"/s3?X-Amz-Credential={KINDS[7][1]}%2F20270101%2Feu"]  # fmt: skip
OUT_OF_PLACE = [f"/a/{TOKEN}", f"/a?q={TOKEN}", f"/a?x=1&note={TOKEN}", f"/token/{TOKEN}", f"/a?token=1&q={TOKEN}", f"/a?{TOKEN}", f"token {TOKEN}"]  # fmt: skip


def test_credential_parameters_are_allowed_places():
    for text in IN_PLACE:
        assert found(text, parameters=True) == [], text
        assert found(text), text
    for text in OUT_OF_PLACE:
        assert found(text, parameters=True) == ["github-token"], text


def test_token_in_its_services_path_is_no_finding():
    bot = next(row[1] for row in KINDS if row[0] == "telegram-bot-token")
    assert found(f"/bot{bot}/getMe", url=True) == []
    assert found(f"/bot{bot}/getMe") == ["telegram-bot-token"]


def test_entropy_is_computed():
    assert entropy(b"") == 0
    assert entropy(b"aaaa") == 0
    assert entropy(bytes(range(256))) == 8
    assert entropy(b"abab") == 1


def parts(tree, *, inside=False):
    """Yield what an expression repeats, and whether within another repetition."""
    for operator, argument in tree:
        if operator in {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT}:
            low, high, body = argument
            yield low, high, inside
            yield from parts(body, inside=True)
        elif operator is sre.SUBPATTERN:
            yield from parts(argument[-1], inside=inside)
        elif operator is sre.BRANCH:
            for branch in argument[1]:
                yield from parts(branch, inside=inside)
        elif operator in {sre.ASSERT, sre.ASSERT_NOT}:
            yield from parts(argument[1], inside=inside)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_no_pattern_backtracks_without_bound(pattern):
    """So a match that begins somewhere takes at most as many steps as the product of what differs, which is bounded."""
    steps = 1
    for low, high, inside in parts(_parse(pattern.rest)):
        assert not inside
        assert high is not sre.MAXREPEAT
        steps *= high - low + 1 if high > low else 1
    # What is long and varies may begin only where a word does, or behind a prefix that is long itself
    assert steps <= 64 or pattern.word or _is_apart(pattern)


def _is_apart(pattern):
    """Whether what follows the prefix can't hold the prefix again, or stops at the first character that differs."""
    return pattern.name in {"private-key", "aws-secret-access-key", "slack-webhook", "url-password"}


HOSTILE = [b"AK" + b"IA", b"ey" + b"J", b" sk-", b"://a:", b"-----BEGIN ", b"gh" + b"p_", b"hooks.slack" + b".com/services/T000000000000", b"SecretAccessKey======", b".ey" + b"Ja", b"xox" + b"b-", b"\\n", b"a" * 7 + b"."]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_text_full_of_prefixes_is_scanned(piece, monkeypatch):
    """Each place where one could begin is looked at closely once for each of its patterns, and no further on."""
    from proxy.dlp import patterns

    looked = 0

    class Counted:
        def __init__(self, rest):
            self._rest = rest

        def match(self, text, at):
            nonlocal looked
            looked += 1
            return self._rest.match(text, at, at + LONGEST)

    begun = {
        byte: tuple(one._replace(rest=Counted(one.rest)) for one in each) for byte, each in patterns._BEGUN.items()
    }
    monkeypatch.setattr(patterns, "_BEGUN", begun)
    text = piece * ((1 << 16) // len(piece))
    assert list(find_credentials(text)) == []
    assert looked <= 3 * len(text) // len(piece) + 3


@pytest.mark.parametrize("before", ["", " ", '"', "=", "\\n", "\\t", "\\u003d", ":", "/", "\n"])
def test_word_boundaries_before_a_token(before):
    assert BEGINS_WORD.match((before + "sk-").encode(), len(before))
    assert "sk-key" in found(before + "sk-" + some(40))


@pytest.mark.parametrize("before", [*string.ascii_letters, *string.digits, "_", "-"])
def test_no_word_boundary_before_a_token(before):
    assert BEGINS_WORD.match((before + "sk-").encode(), len(before)) is None
