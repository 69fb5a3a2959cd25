"""Paths: read as servers read them, all of their ways, and the strictest stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.paths import PathPattern, readings

READ = [
    ("/", ["/"]),
    ("//", ["/"]),
    ("/a/b", ["/a/b"]),
    ("/a/b/", ["/a/b"]),
    ("/a/b?c=../d%zz#e", ["/a/b"]),
    ("*", ["/"]),
    ("/a%20b", ["/a b"]),
    ("/caf%C3%A9", ["/café"]),
    ("/café", ["/café"]),
    ("/%61dmin", ["/admin"]),
    ("/100%25", ["/100%"]),
    ("/.git/config", ["/.git/config"]),
    ("/...", ["/..."]),
    ("/a//b", ["/a//b", "/a/b"]),
    ("/a/./b", ["/a/./b", "/a/b"]),
    ("/a/%2E/b", ["/a/./b", "/a/b"]),
    ("/a;x=1/b", ["/a;x=1/b", "/a/b"]),
    ("/(S(x))/a", ["/(S(x))/a", "/a"]),
    ("/a/(A(x)F(y))/%28s%28%29%29/b", ["/a/(A(x)F(y))/(s())/b", "/a/b"]),
    ("/(a)/f(1)/(1(x))/((x))", ["/(a)/f(1)/(1(x))/((x))"]),
    ("/@scope%2fname", ["/@scope|name", "/@scope/name"]),  # | stands for a slash inside a segment
    ("/job/f%252Fx", ["/job/f%2Fx", "/job/f/x"]),
]

AMBIGUOUS = [
    "", "a", "http://x/a", "example.com:443", "/..", "/a/../b", "/a/..", "/a/%2e%2e/b", "/a/%2E./b", "/a/.%2e", "/a/..;/b",
    "/a/..;x=1/b", "/a%2f..%2fb", "/%2e%2e%2f", "/%252e%252e/b", "/%25252e%25252e/b", "/a\\b", "/a%5cb", "/a%255cb", "/a%00b",
    "/a%0d%0aHost:%20evil", "/a%0ab", "/a%7f", "/a\x00b", "/a b", "/a\tb", "/a\r\nb", "/a#b", "/a%", "/a%2", "/a%zz", "/a%+1",
    "/%c0%af", "/%c0%ae%c0%ae/", "/%ff", "/%ed%a0%80", "/a\udcff", "/%2525252525252541",
]  # fmt: skip


@pytest.mark.parametrize(("path", "expected"), READ)
def test_a_path_is_read_as(path, expected):
    shown = ["/" + "/".join(segment.replace("/", "|") for segment in reading) for reading in readings(path)]
    assert shown == expected


@pytest.mark.parametrize("path", AMBIGUOUS)
def test_is_ambiguous(path):
    assert readings(path) == ()


@pytest.mark.parametrize("step", ["/a", "%2Fa", "%252Fa", "/", "/a;b", "/."])
def test_a_path_of_very_many_segments_is_read_by_nobody(step):
    """Every rule goes through all of them: a head's worth kept the gate, and a reload, waiting."""
    assert readings("/a" + step * 900) != ()
    assert readings("/a" + step * 1001) == ()


COVERED = [
    ("/", ["/", "//"], ["/a"]),
    ("/user", ["/user", "/user/", "/user?x=1", "/%75ser"], ["/users", "/user/x", "/User", "/"]),
    ("/user/", ["/user", "/user/"], ["/user/x"]),
    ("/**", ["/", "/a", "/a/b/c", "/@s%2Fn"], []),
    ("/a/**", ["/a", "/a/", "/a/b", "/a/b/c"], ["/", "/ab", "/b/a"]),
    ("/a/*", ["/a/b", "/a/b/"], ["/a", "/a/b/c", "/b/b"]),
    ("/a*", ["/a", "/abc"], ["/b", "/a/b"]),
    ("/*.zip", ["/x.zip", "/.zip"], ["/x.zip/y", "/a/x.zip"]),
    ("/**/*.zip", ["/x.zip", "/a/b/x.zip"], ["/x.zip/y"]),
    ("/a/**/z", ["/a/z", "/a/b/z", "/a/z/z"], ["/a", "/z", "/a/z/b"]),
    ("/**/x/**/y", ["/x/y", "/a/x/b/y", "/x/x/y/y"], ["/y/x"]),
    ("/r/*/*/p*s", ["/r/o/n/pulls", "/r/o/n/ps"], ["/r/o/pulls", "/r/o/n/issues"]),
    ("/a%20b", ["/a%20b"], ["/a%2520b"]),
    ("/café", ["/caf%c3%a9", "/café"], ["/cafe"]),
    ("/@*%2f*", [], ["/@scope/name", "/@scope%2fname"]),  # one reading is not enough
    ("/a/b", [], ["/a//b", "/a/./b", "/a;x/b", "/a%2fb"]),
    ("/a%2a", ["/a*", "/a%2A"], ["/ab"]),
]


def _let_through(pattern, path):
    found = readings(path)
    return bool(found) and all(pattern.matches(reading) for reading in found)


@pytest.mark.parametrize(("pattern", "covered", "others"), COVERED, ids=[row[0] for row in COVERED])
def test_a_pattern_lets_through(pattern, covered, others):
    parsed = PathPattern.parse(pattern)
    assert [path for path in covered if not _let_through(parsed, path)] == []
    assert [path for path in others if _let_through(parsed, path)] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a", "`/a`"), ("", "slash"), ("/a?b", "query"), ("/a#b", "fragment"), ("/a;b", "parameters"), ("/a\\b", "backslash"),
        ("/a//b", "empty segment"), ("/a/../b", "`..`"), ("/./a", "`.`"), ("/%2e%2e/a", "`..`"), ("/a**", "whole segments"),
        ("/a%zz", "broken escape"), ("/a%00", "control"), ("/a\nb", "control"), ("/a%5cb", "control"), ("/**/a/**/b/**", "times `**`"),
        ("/" + "a/" * 65, "more than 64 segments"),
    ],
)  # fmt: skip
def test_a_pattern_that_could_not_work_is_refused(text, says):
    with pytest.raises(ValueError, match=r".") as error:
        PathPattern.parse(text)
    assert says in str(error.value)


@given(st.lists(st.sampled_from(["a", "*", "**", "a*b", "*c", "%2f", "%25", "%2A*", "é"]), max_size=5))
def test_the_text_of_a_pattern_means_the_same_pattern(segments):
    try:
        pattern = PathPattern.parse("/" + "/".join(segments))
    except ValueError:
        return
    assert PathPattern.parse(pattern.text) == pattern


HOSTILE = st.text(alphabet="/.%25ec2fF;\\?*a \0é\udcff", max_size=24)


@given(HOSTILE)
def test_no_reading_climbs_or_hides(path):
    for reading in readings("/" + path):
        assert ".." not in reading
        assert not set("".join(reading)) & {"\\", "\0", "\n"}


@given(HOSTILE)
def test_escaping_changes_nothing(path):
    """Escaping a letter, in any case of the digits, leaves every reading as it is."""
    plain, escaped = "/a" + path, "/%61" + path
    assert readings(plain.partition("?")[0]) == readings(escaped.partition("?")[0])


@given(HOSTILE)
def test_fully_decoded_segments_are_among_the_readings(path):
    """Whatever a server decodes once and splits, a rule has seen."""
    from urllib.parse import unquote_to_bytes

    found = readings("/" + path)
    if not found:
        return
    raw = unquote_to_bytes(("/" + path).partition("?")[0].encode("utf-8", "surrogateescape")).decode()
    merged = tuple(s for s in (part.partition(";")[0] for part in raw.split("/")) if s not in {"", "."})
    if "%" not in raw:
        assert merged in found


def test_a_path_of_many_segments_is_read_in_linear_time():
    pattern = PathPattern.parse("/**/a/**/b")
    path = readings("/a" * 1000)[0]
    steps = 0

    class Counted(tuple):
        __slots__ = ()

        def __getitem__(self, index):
            nonlocal steps
            steps += 1
            return super().__getitem__(index)

    assert not pattern.matches(Counted(path))
    assert steps < 10 * len(path)
