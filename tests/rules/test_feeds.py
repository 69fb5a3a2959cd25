"""Lists of names: which lines count, which files are refused, and that only deny and ask can use them."""

import os
import pickle
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules import feeds
from rules.attempt import Attempt, Protocol
from rules.explain.explanation import consider_rules, explain, weigh_considered
from rules.feeds import Feed, find_covering
from rules.loading.cases import parse_attempt
from rules.loading.load import read
from rules.matching.policy import Policy
from rules.problems import RuleFileError
from rules.rule import Exemption, Rule
from rules.values.names import HostName, InvalidNameError
from rules.values.patterns import NamePattern
from rules.verdicts import Verdict
from tests.rules.rule_texts import told

OPEN = "  - {id: open, to: '*', action: allow}\n"
ADS = "  - {id: ads, to: {list: ads.txt}, action: deny, why: not ours}\n"


def loaded(directory: Path, rules: str, **lists: bytes):
    for name, data in lists.items():
        (directory / f"{name}.txt").write_bytes(data)
    file = directory / "t.yaml"
    file.write_text(f"version: 1\nname: t\nrules:\n{rules}")
    return read([file])


def problems(directory: Path, rules: str, **lists: bytes) -> list[str]:
    with pytest.raises(RuleFileError) as error:
        loaded(directory, rules, **lists)
    return [f"{problem.line}:{problem.column}: {problem.message}" for problem in error.value.problems]


def asked(found, attempt: str) -> str:
    return told(parse_attempt(attempt).decide(found.policy))


def names(data: bytes) -> set[str]:
    return {name for chunk in Feed.read(data, "t").names for name in chunk.split()}


LINES = [
    # line, what counts of it, lines that are bad
    (b"ads.example", {"ads.example"}, 0),
    (b"ads.example.", {"ads.example"}, 0),
    (b"  ADS.Example\t # theirs", {"ads.example"}, 0),
    (b"ads.example#theirs", {"ads.example"}, 0),
    (b"0.0.0.0 ads.example", {"ads.example"}, 0),
    (b"127.0.0.1\tads.example\r", {"ads.example"}, 0),
    (b"::1 ads.example", {"ads.example"}, 0),
    (b":: ads.example # theirs", {"ads.example"}, 0),
    (b"192.0.2.7 ads.example", {"ads.example"}, 0),
    (b"0.0.0.0 ads.example www.ads.example", {"ads.example", "www.ads.example"}, 0),
    (b"_dmarc.ads.example", {"_dmarc.ads.example"}, 0),
    (b"zip", {"zip"}, 0),  # a name a line: a top-level domain
    (b"127.0.0.1 localhost", set(), 0),  # a hosts file: this host's own
    (b"127.0.0.1 local", set(), 0),
    (b"fe80::1%lo0 localhost", set(), 0),
    (b"0.0.0.0 0.0.0.0", set(), 0),
    ("größe.example".encode(), {"xn--gre-6ka8i.example"}, 0),
    ("ＡＤＳ．example".encode(), {"ads.example"}, 0),  # noqa: RUF001
    (b"xn--gre-6ka8i.example", {"xn--gre-6ka8i.example"}, 0),
    (b"xn--99999999.example", set(), 1),  # an alias of no name
    (b"", set(), 0),
    (b"   # a comment", set(), 0),
    (b"192.0.2.7", set(), 1),
    (b"0.0.0.0", set(), 1),
    (b"ads.example 0.0.0.0", set(), 1),
    (b"ads example", set(), 1),
    (b"||ads.example^", set(), 1),
    (b"*.ads.example", set(), 1),
    (b"https://ads.example/", set(), 1),
    (b"ads..example", set(), 1),
    (b"-ads.example", set(), 1),
    (b"ads-.example", set(), 1),
    (b"ads.example-", set(), 1),
    (b"ads.ex_ample", set(), 1),
    (b"ads.1", set(), 1),
    (b"ads.0x7f", set(), 1),
    (b"ads\x00.example", set(), 1),
    (b"ads\xff.example", set(), 1),
    (b"a" * 63 + b".example", {"a" * 63 + ".example"}, 0),
    (b"a" * 64 + b".example", set(), 1),
    (b"a." * 126 + b"b", {"a." * 126 + "b"}, 0),
    (b"a." * 127 + b"b", set(), 1),
    (b"a" * 100_000, set(), 1),
    (b"0.0.0.0 ads.example bad..example", {"ads.example"}, 1),  # what is good of it still counts
]


def shown(value):
    """Name a case, the same in every process: sets have no order."""
    return repr(sorted(value) if isinstance(value, set) else value)[:40]


@pytest.mark.parametrize(("line", "expected", "bad"), LINES, ids=shown)
def test_list_lines_are_parsed(line, expected, bad):
    feed = Feed.read(b"first.example\n" + line + b"\nlast.example", "t")
    found = {name for chunk in feed.names for name in chunk.split()} - {"first.example", "last.example"}
    assert (found, feed.bad) == (expected, bad)
    assert feed.first_bad is None or feed.first_bad.number == 2
    assert feed.count == len(expected) + 2


@pytest.mark.parametrize(("line", "expected"), [row[:2] for row in LINES], ids=shown)
def test_list_line_counts_alike_among_simple_and_other_lines(line, expected):
    assert names(b"a.example\n" + line) == names(b"a.example\nno name\n# comment\n" + line) == {"a.example", *expected}


@given(st.lists(st.text("aA1-_.xn*#\r \t0ß", max_size=12), min_size=1, max_size=8))
def test_every_valid_name_and_nothing_else_is_read(lines):
    data = "\n".join(["known.example", *lines]).encode()
    found = names(data)
    assert all(HostName.parse(name) == name for name in found)
    for line in lines:
        words = line.partition("#")[0].split()
        if len(words) == 1:
            try:
                assert HostName.parse(words[0]) in found
            except InvalidNameError:
                assert words[0] not in found


def test_byte_order_mark_is_skipped():
    assert names(b"\xef\xbb\xbfads.example\n") == {"ads.example"}


LISTED = Feed.read(b"ads.example\nb.c.example\nzip\nads.example\n", "t")
COVERED = [
    ("ads.example", True),
    ("x.ads.example", True),
    ("x.y.ads.example", True),
    ("b.c.example", True),
    ("c.example", False),
    ("example", False),
    ("xads.example", False),
    ("ads.example.net", False),
    ("ads.exampl", False),
    ("zip", True),
    ("any.thing.zip", True),
    ("zip.example", False),
]


@pytest.mark.parametrize(("name", "covered"), COVERED)
def test_listed_name_covers_its_subdomains(name, covered):
    assert LISTED.covers(HostName(name)) is covered


def test_names_with_same_end_in_one_chunk_stay_distinct():
    """All in one place: then only the comparison decides."""
    feed = Feed("t", "", ("\nb.example\nab.example\n",), single=False)
    assert [feed.covers(HostName(name)) for name in ("b.example", "ab.example", "cab.example", "x.example")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_different_lists_differ():
    one, other = Feed.read(b"a.example\nb.example", "one"), Feed.read(b"b.example", "other")
    asked_for = [HostName(name) for name in ("a.example", "x.b.example", "c.example")]
    assert [find_covering((one, other), name) for name in asked_for] == [(0,), (0, 1), ()]


# as part of a policy


def test_deny_list_denies_its_names_only(tmp_path):
    found = loaded(tmp_path, OPEN + ADS, ads=b"0.0.0.0 ads.example\n")
    assert asked(found, "GET https://ads.example/") == "deny rule t:ads"
    assert asked(found, "GET https://x.ads.example/") == "deny rule t:ads"
    assert asked(found, "tcp ads.example:22") == "deny rule t:ads"
    assert asked(found, "GET https://www.example/") == "allow rule t:open"
    assert found.policy.decide_name(HostName("x.ads.example")).verdict == "deny"
    assert found.policy.decide_name(HostName("www.example")).verdict == "allow"
    assert parse_attempt("ads.example:443").decide(found.policy).why == "not ours"


def test_ask_rule_takes_lists_and_names(tmp_path):
    rules = OPEN + "  - {id: new, to: [{list: new.txt}, news.example, {list: more.txt}], action: ask}\n"
    found = loaded(tmp_path, rules, new=b"new.example", more=b"more.example")
    for name in ("new.example", "news.example", "more.example"):
        assert asked(found, f"{name}:443") == "ask rule t:new"
    assert asked(found, "x.news.example:443") == "allow rule t:open"


def test_exceptions_of_a_rule_apply_to_its_list(tmp_path):
    rules = OPEN + "  - {id: ads, to: {list: ads.txt}, action: deny, except: ['**.ours.example']}\n"
    found = loaded(tmp_path, rules, ads=b"example\n")
    assert asked(found, "www.example:443") == "deny rule t:ads"
    assert asked(found, "www.ours.example:443") == "allow rule t:open"


def test_two_rules_with_one_list_are_both_named(tmp_path):
    rules = OPEN + ADS + "  - {id: again, to: {list: sub/../ads.txt}, action: deny}\n"
    (tmp_path / "sub").mkdir()
    assert asked(loaded(tmp_path, rules, ads=b"ads.example"), "ads.example:443") == "deny rule t:ads,t:again"


def test_default_rule_can_have_a_list(tmp_path):
    rules = (
        "  - {id: ads, to: {list: ads.txt}, action: deny, default: true}\n"
        "  - {id: a, to: a.example, action: allow}\n"
        "  - {id: rest, to: '*', default: true, action: allow}\n"
    )
    found = loaded(tmp_path, rules, ads=b"a.example\nb.example")
    assert asked(found, "a.example:443") == "allow rule t:a"
    assert asked(found, "b.example:443") == "deny default_rule t:ads"


def test_explain_agrees_about_listed_names(tmp_path):
    found = loaded(tmp_path, OPEN + ADS, ads=b"ads.example")
    shown = explain(found.policy, parse_attempt("https://x.ads.example:443".replace("https://", "")))
    assert {entry.rule.id: entry.match.value for entry in shown.considered} == {"t:ads": "yes", "t:open": "yes"}
    assert told(shown.decision) == "deny rule t:ads"


def test_list_never_matches_addresses(tmp_path):
    rules = "  - {id: raw, to: 192.0.2.7, action: allow}\n" + ADS
    found = loaded(tmp_path, rules, ads=b"0.0.0.0 ads.example\n192.0.2.7\n")
    assert asked(found, "192.0.2.7:443") == "allow rule t:raw"


def test_list_contents_are_in_revision_and_its_file_in_sources(tmp_path):
    before = loaded(tmp_path, ADS, ads=b"ads.example\n").policy
    same = loaded(tmp_path, ADS, ads=b"ads.example\n").policy
    after = loaded(tmp_path, ADS, ads=b"ads.example\nmore.example\n").policy
    assert before.revision == same.revision != after.revision
    assert set(before.sources) == {tmp_path / "t.yaml", tmp_path / "ads.txt"}


def test_list_path_is_relative_to_its_rule_file(tmp_path):
    (tmp_path / "corp").mkdir()
    (tmp_path / "corp" / "corp.yaml").write_text("version: 1\nrules:\n" + ADS)
    (tmp_path / "corp" / "ads.txt").write_text("ads.example")
    (tmp_path / "t.yaml").write_text("version: 1\ninclude: [{file: corp/corp.yaml}]\n")
    assert asked(read([tmp_path / "t.yaml"]), "ads.example:443") == "deny rule corp:ads"


def test_malformed_lines_are_counted_in_a_warning(tmp_path):
    found = loaded(tmp_path, OPEN + ADS, ads=b"# list\nads.example\n||x.example^\n\n/regex/\n")
    assert [f"{w.line}:{w.column}: {w.message}" for w in found.warnings] == [
        "5:19: `ads.txt`: 2 lines are no names and count for nothing; the first is line 3, `||x.example^`"
    ]
    (feed,) = next(rule.feeds for rule in found.policy.rules if rule.feeds)
    assert (feed.count, feed.bad) == (1, 2)


def test_malformed_line_is_shown_escaped(tmp_path):
    found = loaded(tmp_path, ADS, ads=b"ads.example\n\x1b[2J\xe2\x80\xae bad\n")
    assert "\x1b" not in found.warnings[0].message
    assert "\u202e" not in found.warnings[0].message


LABELS = st.sampled_from(["a", "b", "zip"])
SHORT = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
LONG = st.lists(LABELS, min_size=1, max_size=4).map(".".join).map(HostName)
A_LIST = st.lists(SHORT, min_size=1, max_size=4).map(lambda names: Feed.read("\n".join(names).encode(), "t"))
A_RULE = st.builds(
    partial(Rule),
    st.just("t:r"),
    st.sampled_from(Verdict),
    st.lists(st.sampled_from(["*", "**.a.b", "a.b", "*.zip"]).map(NamePattern.parse), max_size=1).map(tuple),
    feeds=st.lists(A_LIST, max_size=2).map(tuple),
    default=st.booleans(),
    excepts=st.lists(st.builds(Exemption, st.just((NamePattern.parse("a.b.a"),))), max_size=1).map(tuple),
)


@given(st.lists(A_RULE, max_size=5), st.lists(LONG, min_size=1, max_size=5))
def test_listed_names_are_found(pool, asked_for):
    """What the compiled policy decides is what one rule after the other says, read by itself."""
    rules = [r._replace(id=f"t:{n}", feeds=() if r.allows else r.feeds) for n, r in enumerate(pool)]
    policy = Policy(rules)
    for name in asked_for:
        attempt = Attempt(Protocol.TLS, name, 443)
        plainly = weigh_considered(consider_rules(policy, attempt), attempt, policy.leniency(attempt.target))
        assert set(policy.decide(attempt).rules) == {rule.id for rule in plainly.rules}


# what is refused

ALLOWS = "only `deny` and `ask` can use a list, and this is"
REFUSED = {
    "an allow": ("  - {id: a, to: {list: ads.txt}, action: allow}\n", f"4:17: {ALLOWS} `allow`"),
    "a flag": ("  - {id: a, to: {list: ads.txt}, action: flag}\n", f"4:17: {ALLOWS} `flag`"),
    "an exception": (
        "  - {id: a, to: x.example, action: deny, except: [{to: {list: ads.txt}}]}\n",
        "4:51: a list belongs to the `to` of a rule: write the names here",
    ),
    "no file": (
        "  - {id: a, to: {list: none.txt}, action: deny}\n",
        "4:24: `none.txt` can't be read: no such file or directory",
    ),
    "a directory": ("  - {id: a, to: {list: .}, action: deny}\n", "4:24: `.` can't be read: it is not a file"),
    "another key": (
        "  - {id: a, to: {list: ads.txt, format: hosts}, action: deny}\n",
        "4:33: `format` is not a key of a list",
    ),
    "no path": ("  - {id: a, to: {list: [ads.txt]}, action: deny}\n", "4:24: `list` must be one word or text"),
    "a NUL": ('  - {id: a, to: {list: "a\\0b"}, action: deny}\n', "can't be read: "),
}


@pytest.mark.parametrize("what", REFUSED)
def test_misplaced_list_is_an_error(what, tmp_path):
    rules, expected = REFUSED[what]
    (found,) = problems(tmp_path, rules, ads=b"ads.example")
    assert expected in found


FILES = {
    "nothing": (b"", "it has no names in it"),
    "comments alone": (b"# nothing yet\n", "it has no names in it"),
    "a page instead of a list": (b"<html>\n<body>503 Service Unavailable</body>\n</html>\n", "it has no names in it"),
    "another encoding": ("ads.example\n".encode("utf-16"), "it has no names in it"),
    "a secret": (b"root:x:0:0::/root:/bin/sh\n", "it has no names in it"),  # and nothing of it is shown
}


@pytest.mark.parametrize("what", FILES)
def test_file_that_is_no_list_is_one_error(what, tmp_path):
    data, expected = FILES[what]
    assert problems(tmp_path, ADS, ads=data) == [f"4:26: `ads.txt` can't be read: {expected}"]


def test_unreadable_lists_are_errors(tmp_path):
    (tmp_path / "one.txt").symlink_to("other.txt")
    (tmp_path / "other.txt").symlink_to("one.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    lists = ("one", "pipe", "device")
    rules = "".join(f"  - {{id: {name}, to: {{list: {name}.txt}}, action: deny}}\n" for name in lists)
    found = problems(tmp_path, rules)
    assert ["can't be read" in problem for problem in found] == [True] * 3
    assert "symbolic links" in found[0] or "loop" in found[0].lower()
    assert found[1].endswith("it is not a file")
    assert found[2].endswith("it is not a file")


def test_oversized_lists_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(feeds, "_MOST_LINES", 10)
    assert problems(tmp_path, ADS, ads=b"a.example\n" * 11)[0].endswith("it has more than 10 lines")
    monkeypatch.setattr(feeds, "_MOST_FOREIGN", 10)
    foreign = "ä.example\n".encode() * 10
    assert loaded(tmp_path, ADS, ads=foreign).policy.rules[0].feeds[0].count == 1
    monkeypatch.setattr(feeds, "_MOST_LINES", 100)
    assert problems(tmp_path, ADS, ads=foreign * 2)[0].endswith("more than 10 lines that are not in ASCII")


# as it is kept


def test_list_survives_pickling():
    again = pickle.loads(pickle.dumps(LISTED))
    assert (again.text, again.digest, again.names, again.bad) == ("t", LISTED.digest, LISTED.names, 0)


def test_list_survives_another_hash_seed():
    script = (
        "import pickle, sys; from rules.values.names import HostName; feed = pickle.load(sys.stdin.buffer);"
        "print(*(feed.covers(HostName(f'x.n{n}.example')) for n in range(500)), feed.covers(HostName('m.example')))"
    )
    feed = Feed.read(b"\n".join(b"n%d.example" % n for n in range(500)), "t")
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(feed),
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=Path(feeds.__file__).parents[1],
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"True"] * 500 + [b"False"]


def test_list_memory_is_close_to_its_names():
    data = b"\n".join(b"0.0.0.0 host%d.ads.example" % n for n in range(50_000))
    tracemalloc.start()
    try:
        feed = Feed.read(data, "t")
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert feed.count == 50_000
    assert kept < 2 * len(data)
    assert most < 200 * 50_000  # bytes: a million names, 200 MB
