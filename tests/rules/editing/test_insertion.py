"""An answer written into a rule file: what it says, that nothing else of the text moves, and when it is not written."""

from datetime import date
from functools import partial
from pathlib import Path

import pytest

from rules.attempt import Caller, Protocol, RefChange
from rules.editing.insertion import AttemptToAllow, EditError, add_rule
from rules.loading.load import read

POST = AttemptToAllow(Protocol.TLS, "x.example", 443, "POST", "/a/b?key=1", body=True)
DB = AttemptToAllow(Protocol.TCP, "db.example", 5432)
MAIN = AttemptToAllow(
    Protocol.TLS, "g.example", 443, "POST", "/acme/web.git/git-receive-pack", body=True, repo="acme/web",
    refs=(("refs/heads/main", RefChange.UPDATE),),
)  # fmt: skip
ENTRY = "{to: x.example, ports: [443], http: {methods: [POST], paths: [/a/b]}}"
RULE = "{id: approved-x-example, to: x.example, ports: [443], http: {methods: [POST], paths: [/a/b]}, action: allow}"
HEAD = "version: 1\nname: t\n"

# what the file holds, what was asked about, and the file as it is then; `+` marks the lines that are new or otherwise
WRITTEN = {
    "in blocks": (
        "# ours\nrules:\n  - id: q   # asks\n    to: '*'\n    action: ask  # always\n\n  # the rest\n  - {id: g, to: y.example, action: allow}\n",
        ("# ours\nrules:\n  - id: q   # asks\n    to: '*'\n    action: ask  # always\n"
        f"    except: [{ENTRY}]\n"
        "  - id: approved-x-example\n    to: x.example\n    ports: [443]\n    http: {methods: [POST], paths: [/a/b]}\n    action: allow\n"
        "\n  # the rest\n  - {id: g, to: y.example, action: allow}\n"),
    ),
    "in flow": (
        "rules:\n- {id: q, to: '*', action: ask, }  # one\n- {id: g, to: y.example, action: allow}\n",
        f"rules:\n- {{id: q, to: '*', action: ask, except: [{ENTRY}], }}  # one\n- {RULE}\n- {{id: g, to: y.example, action: allow}}\n",
    ),
    "all in one line": (
        "rules: [{id: q, to: '*', action: ask}]",
        f"rules: [{{id: q, to: '*', action: ask, except: [{ENTRY}]}}, {RULE}]",
    ),
    "without an end of its last line": (
        "rules:\n  - {id: q, to: '*', action: ask}",
        f"rules:\n  - {{id: q, to: '*', action: ask, except: [{ENTRY}]}}\n  - {RULE}\n",
    ),
    "with tabs behind values": (
        "rules:\n  - {id: q,\tto: '*',\taction: ask}\t# why\n",
        f"rules:\n  - {{id: q,\tto: '*',\taction: ask, except: [{ENTRY}]}}\t# why\n  - {RULE}\n",
    ),
    "a list of exemptions": (
        "rules:\n  - id: q\n    except: [y.example]\n    to: '*'\n    action: ask\n",
        (f"rules:\n  - id: q\n    except: [y.example, {ENTRY}]\n    to: '*'\n    action: ask\n"
        "  - id: approved-x-example\n    to: x.example\n    ports: [443]\n    http: {methods: [POST], paths: [/a/b]}\n    action: allow\n"),
    ),
    "one exemption": (
        "rules:\n  - {id: q, except: y.example, to: '*', action: ask}\n",
        f"rules:\n  - {{id: q, except: [y.example, {ENTRY}], to: '*', action: ask}}\n  - {RULE}\n",
    ),
    "exemptions in lines": (
        "rules:\n  - id: q\n    to: '*'\n    action: ask\n    except:\n    - y.example  # theirs\n    # more\n",
        (f"rules:\n  - id: q\n    to: '*'\n    action: ask\n    except:\n    - y.example  # theirs\n    - {ENTRY}\n"
        "  - id: approved-x-example\n    to: x.example\n    ports: [443]\n    http: {methods: [POST], paths: [/a/b]}\n    action: allow\n    # more\n"),
    ),
    "a text of several lines at its end": (
        "rules:\n  - id: q\n    to: '*'\n    action: ask\n    why: |\n      because\n      # of this\n\n# end\n",
        (f"rules:\n  - id: q\n    to: '*'\n    action: ask\n    why: |\n      because\n      # of this\n\n    except: [{ENTRY}]\n"
        "  - id: approved-x-example\n    to: x.example\n    ports: [443]\n    http: {methods: [POST], paths: [/a/b]}\n    action: allow\n# end\n"),
    ),
    "a default asks": (
        "rules:\n  - {id: q, to: '*', default: true, action: ask}\n",
        f"rules:\n  - {{id: q, to: '*', default: true, action: ask}}\n  - {RULE}\n",
    ),
    "beside what lets out": (
        "rules:\n  - {id: q, to: '*', http: {methods: [POST]}, action: ask}\n  - {id: g, to: x.example, action: allow}\n",
        f"rules:\n  - {{id: q, to: '*', http: {{methods: [POST]}}, action: ask, except: [{ENTRY}]}}\n  - {{id: g, to: x.example, action: allow}}\n",
    ),
    "for some, until, and with limits": (
        "rules:\n  - {id: q, to: '*', for: {tasks: m-*}, until: 2099-01-31, limits: {requests: 5}, action: ask}\n",
        (f"rules:\n  - {{id: q, to: '*', for: {{tasks: m-*}}, until: 2099-01-31, limits: {{requests: 5}}, action: ask, except: [{ENTRY}]}}\n"
        f"  - {RULE.replace(', action', ', for: {tasks: m-*}, until: 2099-01-31, limits: {requests: 5}, action')}\n"),
    ),
    "what has a body": (
        "rules:\n  - {id: q, to: '*', http: {methods: [POST], body: true}, action: ask}\n",
        (f"rules:\n  - {{id: q, to: '*', http: {{methods: [POST], body: true}}, action: ask, except: [{ENTRY}]}}\n"
        f"  - {RULE[:-1]}, except: [{{http: {{body: false}}}}]}}\n"),
    ),
    "beside one of that id": (
        "rules:\n  - {id: q, to: '*', default: true, action: ask}\n  - {id: approved-x-example, to: y.example, action: allow}\n",
        f"rules:\n  - {{id: q, to: '*', default: true, action: ask}}\n  - {RULE.replace('approved-x-example', 'approved-x-example-2')}\n  - {{id: approved-x-example, to: y.example, action: allow}}\n",
    ),
}  # fmt: skip


def write(path, text, wanted, asks=("t:q",), **said):
    path.write_bytes((HEAD + text).encode() if isinstance(text, str) else text)
    return add_rule(partial(_read, [path]), path, asks, wanted, **said)


def _read(paths, instead):
    return read(paths, [], instead=instead)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_rule_is_inserted_in_the_style_of_the_file(tmp_path, kind, line_break):
    before, after = ((HEAD + text).replace("\n", line_break) for text in WRITTEN[kind])
    wanted = POST._replace(caller=Caller("m-1", at=date(2027, 1, 1))) if "for some" in kind else POST
    edited = write(tmp_path / "t.yaml", before.encode(), wanted)
    ends = (
        after if after.endswith(line_break) or before.endswith(line_break) or line_break == "\n" else after + line_break
    )
    if not before.endswith(line_break) and "\n" not in before.removeprefix(HEAD.replace("\n", line_break)):
        ends = after
    assert edited.data.decode() == ends
    assert (tmp_path / "t.yaml").read_bytes() == before.encode(), "whoever asks for it writes the file"


@pytest.mark.parametrize("begin", ["", "\ufeff"], ids=["plain", "with a byte order mark"])
def test_rule_is_inserted_among_non_ascii_text(tmp_path, begin):
    text = begin + HEAD + "# \U0001f512 é ü\nrules:\n  - {id: q, to: '*', why: 'ä \U0001f512', action: ask} # ö\n"
    edited = write(tmp_path / "t.yaml", text.encode(), POST)
    added = f", except: [{ENTRY}]"
    assert edited.data.decode() == text.replace("ask}", f"ask{added}}}") + f"  - {RULE}\n"


OTHERS = [
    # asked about, the ask, the allow that is written
    (DB, "ports: 5432/tcp", "to: db.example, ports: [5432/tcp], action: allow"),
    (DB._replace(protocol=Protocol.UDP, port=9), "ports: 9/udp", "to: db.example, ports: [9/udp], action: allow"),
    (AttemptToAllow(Protocol.TLS, "db.example", 8443), "tls: splice", "ports: [8443/tls], tls: splice, action: allow"),
    (AttemptToAllow(Protocol.HTTP, "db.example", 80, "GET", "/"), "why: x", "ports: [80], http: {methods: [GET], paths: [/]}, action: allow"),
    (MAIN, "git: {repos: acme/*, push: refs/**}", "ports: [443], git: {repos: [acme/web], push: [refs/heads/main], changes: [update]}, action: allow"),
    (MAIN._replace(refs=(), path="/acme/web.git/git-upload-pack"), "git: {repos: acme/*, fetch: true}", "git: {repos: [acme/web], fetch: true}, action: allow"),
    (AttemptToAllow(Protocol.TLS, "x.example", 443, "GET", "/chat:1", websocket=True), "why: x", 'paths: ["/chat:1"], websocket: true}, action: allow'),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "says", "expected"), OTHERS)
def test_written_rule_allows_only_the_requested_attempt(tmp_path, wanted, says, expected):
    edited = write(tmp_path / "t.yaml", f"rules:\n  - {{id: q, to: '*', {says}, action: ask}}\n", wanted)
    assert expected in edited.data.decode()
    assert edited.rule.startswith("t:approved-")


def test_written_rule_names_its_approver(tmp_path):
    text = "rules:\n  - {id: q, to: '*', default: true, action: ask}\n"
    edited = write(tmp_path / "t.yaml", text, POST, why_text='ada: "for the build"')
    assert r'why: "ada: \"for the build\""' in edited.data.decode()


def test_rule_is_written_into_the_file_of_its_ask_rule(tmp_path):
    (tmp_path / "top.yaml").write_text(
        "version: 1\nname: top\ninclude: [{file: t.yaml}]\nrules: [{id: g, to: y.example, action: allow}]\n"
    )
    path = tmp_path / "t.yaml"
    path.write_text(HEAD + "rules:\n  - {id: q, to: '*', action: ask}\n")
    edited = add_rule(partial(_read, [tmp_path / "top.yaml"]), path, ["t:q"], POST)
    assert edited.rule == "t:approved-x-example"
    with pytest.raises(EditError, match="`t:q` is in another file: edit that file"):
        add_rule(partial(_read, [tmp_path / "top.yaml"]), tmp_path / "top.yaml", ["t:q"], POST)


def test_tainted_task_gets_only_exemption_where_other_rules_allow(tmp_path):
    text = "rules:\n  - {id: q, to: '*', when: tainted, action: ask}\n  - {id: g, to: x.example, action: allow}\n"
    edited = write(tmp_path / "t.yaml", text, POST._replace(caller=Caller(tainted=True)))
    assert (edited.rule, edited.data.decode().count("approved-")) == ("", 0)
    assert f"action: ask, except: [{ENTRY}]}}" in edited.data.decode()


REFUSED = {
    "no rule asks any more": ("rules:\n  - {id: q, to: y.example, action: ask}\n", POST, "is no longer held for approval: no_rule"),
    "it is let out": ("rules:\n  - {id: q, to: y.example, action: ask}\n  - {id: g, to: x.example, action: allow}\n", POST, "allowed already"),
    "a deny holds it too": ("rules:\n  - {id: q, to: '*', action: ask}\n  - {id: d, to: x.example, action: deny}\n", POST, "is no longer held for approval"),
    "another rule": ("rules:\n  - {id: p, to: '*', action: ask}\n", POST, "no rule `t:q` asks"),
    "a second ask": ("rules:\n  - {id: q, to: '*', action: ask}\n  - {id: p, to: '*', action: ask}\n", POST, "would not allow it"),
    "its own tests": (
        "rules:\n  - {id: q, to: '*', action: ask}\ntests:\n  - {attempt: 'POST https://x.example/a/b', expect: ask}\n", POST, "test failed",
    ),
    "a wildcard in the path": ("rules:\n  - {id: q, to: '*', action: ask}\n", POST._replace(path="/a/*"), "has a `*`"),
    "a path of two readings": ("rules:\n  - {id: q, to: '*', action: ask}\n", POST._replace(path="/a%2fb"), "more than one way"),
    "more would change": (
        "rules:\n  - {id: q, to: '*', action: ask, http: {headers: {x-a: absent}}}\n", POST, "more would change: ",
    ),
    "an exemption in a block": (
        "rules:\n  - id: q\n    to: '*'\n    action: ask\n    except:\n      to: y.example\n      ports: 443\n", POST, "make it a list first",
    ),
    "broken": ("rules:\n  - {id: q, too: '*', action: ask}\n", POST, "broken as they are"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_rule_that_cannot_be_written_is_an_error(tmp_path, kind):
    text, wanted, expected = REFUSED[kind]
    with pytest.raises(EditError) as refused:
        write(tmp_path / "t.yaml", text, wanted)
    assert expected in str(refused.value)
    assert (tmp_path / "t.yaml").read_text() == HEAD + text


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(EditError, match=r"none\.yaml` can't be read: no such file"):
        add_rule(lambda _: None, Path(tmp_path, "none.yaml"), ["t:q"], POST)


UNRULED = "# ours\nrules:\n  - {id: d, to: y.example, action: deny}\n  - {id: g, to: x.example, http: {methods: [GET]}, action: allow}  # reads\n# end\n"
NEW = {
    "beside what is read there": (UNRULED, POST, RULE),
    "a host of its own": (UNRULED, POST._replace(host="z.example"), RULE.replace("x.example", "z.example").replace("x-ex", "z-ex")),
    "any bytes": (UNRULED, DB, "{id: approved-db-example, to: db.example, ports: [5432/tcp], action: allow}"),
    "a whole connection": (UNRULED, AttemptToAllow(Protocol.TLS, "z.example", 443), "{id: approved-z-example, to: z.example, ports: [443], action: allow}"),
    "a push": (
        UNRULED, MAIN,
        "{id: approved-g-example, to: g.example, ports: [443], git: {repos: [acme/web], push: [refs/heads/main], changes: [update]}, action: allow}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NEW)
def test_rule_without_an_ask_rule_is_appended(tmp_path, kind):
    text, wanted, rule = NEW[kind]
    edited = write(tmp_path / "t.yaml", text, wanted, ())
    assert edited.data.decode() == HEAD + text.replace("# reads\n", f"# reads\n  - {rule}\n")
    assert (edited.rule, edited.asks) == (f"t:{rule.split(',')[0].removeprefix('{id: ')}", ())


NOT_NEW = {
    "a rule denies it by now": ("rules:\n  - {id: d, to: '*', action: deny}\n", "is now decided by a rule: rule"),
    "a rule asks by now": ("rules:\n  - {id: q, to: '*', action: ask}\n", "is now decided by a rule: "),
    "it is let out": ("rules:\n  - {id: g, to: x.example, action: allow}\n", "allowed already"),
    "no rule is in the file": ("rules: []\n", "has no rule after which a new one can be added"),
    "the file is none of the policy's": (None, "would not allow it"),
    "its own tests": (
        "rules:\n  - {id: g, to: y.example, action: allow}\ntests:\n  - {attempt: 'POST https://x.example/a/b', expect: deny}\n", "test failed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_NEW)
def test_attempt_decided_by_a_new_rule_gets_no_rule(tmp_path, kind):
    text, expected = NOT_NEW[kind]
    top = tmp_path / "top.yaml"
    top.write_text("version: 1\nname: top\nrules:\n  - {id: g, to: y.example, action: allow}\n")
    path = tmp_path / "t.yaml"
    path.write_text(HEAD + (text or "rules:\n  - {id: g, to: y.example, action: allow}\n"))

    def reads(instead):
        return read([path if text else top], [], instead=instead)

    with pytest.raises(EditError, match=expected):
        add_rule(reads, path, (), POST)
