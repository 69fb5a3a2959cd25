"""Request paths: every reading that a server may take, of which the strictest decides."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.values.globs import fold
from rules.values.paths import PathPattern, readings
from tests.rules.rule_texts import decide

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
    ("/...", ["/...", "/"]),
    ("/admin./a", ["/admin./a", "/admin/a"]),
    ("/admin%20/", ["/admin ", "/admin"]),
    ("/v1/m:generate", ["/v1/m:generate"]),
    ("/a::$DATA", ["/a::$DATA", "/a"]),
    ("/a.;x", ["/a.;x", "/a.", "/a"]),
    ("/%EF%BC%A1", ["/\uff21", "/A"]),
    ("/100\uff05\u2026", ["/100\uff05\u2026", "/100%"]),
    ("/a//b", ["/a//b", "/a/b"]),
    ("/a/./b", ["/a/./b", "/a/b"]),
    ("/a/%2E/b", ["/a/./b", "/a/b"]),
    ("/a;x=1/b", ["/a;x=1/b", "/a/b"]),
    ("/(S(x))/a", ["/(S(x))/a", "/a"]),
    ("/a/(A(x)F(y))/%28s%28%29%29/b", ["/a/(A(x)F(y))/(s())/b", "/a/b"]),
    ("/(a)/f(1)/(1(x))/((x))", ["/(a)/f(1)/(1(x))/((x))"]),
    ("/@scope%2fname", ["/@scope|name", "/@scope/name"]),  # | stands for a slash inside a segment
    ("/job/f%252Fx", ["/job/f%2Fx", "/job/f|x", "/job/f/x"]),
    ("/a%2Fb%252Fc", ["/a|b%2Fc", "/a|b|c", "/a/b%2Fc", "/a/b|c", "/a/b/c"]),  # split after each time of decoding
]

AMBIGUOUS = [
    "", "a", "http://x/a", "example.com:443", "/..", "/a/../b", "/a/..", "/a/%2e%2e/b", "/a/%2E./b", "/a/.%2e", "/a/..;/b",
    "/a/..;x=1/b", "/a%2f..%2fb", "/%2e%2e%2f", "/%252e%252e/b", "/%25252e%25252e/b", "/a\\b", "/a%5cb", "/a%255cb", "/a%00b",
    "/a%0d%0aHost:%20evil", "/a%0ab", "/a%7f", "/a\x00b", "/a b", "/a\tb", "/a\r\nb", "/a#b", "/a%", "/a%2", "/a%zz", "/a%+1",
    "/%c0%af", "/%c0%ae%c0%ae/", "/%ff", "/%ed%a0%80", "/a\udcff", "/%2525252525252541",
    "/a/..%20/b", "/a/.%20./b", "/a/%C2%A0../b", "/a/\uff0e\uff0e/b", "/a/\u2025/b", "/a\uff3cb", "/\uff0561dmin", "/%25u0061dmin", "/a/..\u2044b", "/a\u2216b", "/a\uff0f..",
    "/" + "%2541" * 2000, "/a" + "\u0301" * 31, "/a" + "\u0301\u200b" * 31, "/a" + "\uff9e\u0f73" * 16, "/" + "\ufdfa" * 101, "/" + "\u3332" * 40, "/\u00e9" * 252, "/%2541" * 251,
]  # fmt: skip


# what some server takes for `/admin/users`: Windows, IIS, Java, Node and Python frameworks, proxies that decode
SPELLINGS = [
    "/admin/users", "/admin/users/", "/admin./users", "/admin/users.", "/admin/users...", "/admin%2E/users", "/admin%20/users",
    "/admin/users%20", "/admin/users%20.%20", "/%20admin/users", "/admin/users::$DATA", "/admin/users::$data", "/admin::$INDEX_ALLOCATION/users",
    "/admin:$I30:$INDEX_ALLOCATION/users", "/admin/users.::$DATA", "/admin/users::$DATA.", "/admin/users:%24DATA:$DATA",
    "/\uff41\uff44min/users", "/%EF%BC%A1dmin/users", "/admin\uff0fusers", "/\u24d0dmin/users", "/\U0001d41admin/users", "/adm\u2170n/users",
    "/adm\u00adin/users", "/ad\u200cmin/users", "/admin\ufe0f/users", "/admin%CD%8F/users", "/\u115fadmin/users", "/ad\U000e0100min/users", "/admin\ufeff/users", "/admin%E2%80%8B/users", "/admin/users%C2%A0", "/admin/users%E3%80%80",
    "/admin%C2%85/users", "/admin/u\u017fers", "/ADMIN/Users", "/admin.;x=1/users", "/admin;x=1/users.",
    "/admin\uff1bx/users", "/(S(x))/admin./users", "/./admin%20//users", "/.%20/admin/users", "/admin%2Fusers", "/admin%2fusers.", "/admin%252Fusers",
    "/\u00e0dmin/users", "/adm\u00cdn/u\u0161ers", "/a\u0300dmin/users", "/admin\u2044users", "/admin\u2215users",
    "/admin.%2Fusers", "/%61dmin/users", "/%2561dmin/users", "/%25EF%25BC%25A1dmin/users", "/admin/%2575sers%2520",
]  # fmt: skip


@pytest.mark.parametrize("path", SPELLINGS)
@pytest.mark.parametrize("pattern", ["/admin/users", "/admin/*", "/admin/**", "/**/users"])
def test_deny_covers_each_spelling_that_a_server_may_read(pattern, path):
    folded = [PathPattern.parse(pattern.upper()), *map(PathPattern.parse, (pattern, pattern.lower()))]
    cased = [tuple(map(fold, reading)) for reading in readings(path)]
    assert any(one.matches(way) for one in folded for way in cased)


BOTH = """
  - {id: all, to: x.example, http: {paths: ["/**"]}, action: allow}
  - {id: no, to: x.example, http: {paths: ["/admin/**"]}, action: ACTION}
"""


@pytest.mark.parametrize("action", ["deny", "flag"])
@pytest.mark.parametrize("path", SPELLINGS)
def test_deny_and_ask_match_each_spelling(path, action):
    """Above ASCII as the gate forwards it, percent-encoded."""
    sent = "".join(c if c.isascii() else "".join(f"%{byte:02X}" for byte in c.encode()) for c in path)
    decision = decide(BOTH.replace("ACTION", action), f"GET https://x.example{sent}")
    assert decision.verdict.value == action


@pytest.mark.parametrize("path", [path for path in SPELLINGS if path.rstrip("/") != "/admin/users"])
def test_allow_covers_no_spelling_but_its_own(path):
    """Written otherwise it is let out by nothing: not by the path that some server may take it for."""
    found = readings(path)
    exact = PathPattern.parse("/admin/users")
    assert not (found and all(exact.matches(way) for way in found)) or path == "/%61dmin/users"


@pytest.mark.parametrize(
    "path", ["/admin%2Fx%252Fy", "/admin%2Fx%2525y", "/admin/x%252Fy", "/admin/x%2Fy", "/admin%252Fx"]
)
def test_deny_covers_paths_decoded_before_splitting(path):
    assert any(PathPattern.parse("/admin/*").matches(way) for way in readings(path))


@pytest.mark.parametrize(("path", "expected"), READ)
def test_path_has_these_readings(path, expected):
    shown = ["/" + "/".join(segment.replace("/", "|") for segment in reading) for reading in readings(path)]
    assert shown == expected


@pytest.mark.parametrize("path", AMBIGUOUS)
def test_ambiguous_paths_are_recognised(path):
    assert readings(path) == ()


@pytest.mark.parametrize("step", ["/a", "%2Fa", "/", "/a;b", "/."])
def test_path_of_too_many_segments_is_unreadable(step):
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
def test_pattern_matches_paths(pattern, covered, others):
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
def test_pattern_that_cannot_match_is_refused(text, says):
    with pytest.raises(ValueError, match=r".") as error:
        PathPattern.parse(text)
    assert says in str(error.value)


@given(st.lists(st.sampled_from(["a", "*", "**", "a*b", "*c", "%2f", "%25", "%2A*", "é"]), max_size=5))
def test_pattern_text_round_trips(segments):
    try:
        pattern = PathPattern.parse("/" + "/".join(segments))
    except ValueError:
        return
    assert PathPattern.parse(pattern.text) == pattern


HOSTILE = st.text(alphabet="/.%25ec2fF;\\?*a \0é\udcff", max_size=24)


@given(HOSTILE)
def test_no_reading_has_dot_segments(path):
    for reading in readings("/" + path):
        assert ".." not in reading
        assert not set("".join(reading)) & {"\\", "\0", "\n"}


@given(HOSTILE)
def test_percent_encoding_changes_no_reading(path):
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


def test_common_patterns_are_parsed():
    for text in (
        "\u1ea5n \u0111\u1ecbnh",
        "\u05d1\u05bc\u05b0\u05e8\u05b5\u05d0",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "e" + "\u0301" * 30,
        "\ufdfa",
    ):
        assert readings(f"/{quote(text)}")


def test_long_path_is_read_in_linear_work():
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
