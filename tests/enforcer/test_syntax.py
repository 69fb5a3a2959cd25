"""Rule files whose YAML another process reads: the same trees and problems, whatever becomes of that process."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from enforcer import syntax
from enforcer.cli import main
from rules.grammar import document
from rules.grammar.document import Listing, Mapping, Scalar

GOOD = b"version: 1\nrules:\n  - {id: a, to: 'x.example', ports: [443/tls], action: allow, why: \"f\\u00fcr\"}\n"
TEXTS = {
    "good": GOOD,
    "nothing": b"",
    "a tag": b"a: !!python/object:os.system x\n",
    "not YAML": b"a: [1,\n",
    "keys that are there twice": b"a: 1\na: 2\n",
    "control characters": b"a: \x01\n",
    "not UTF-8": b"a: \xff\n",
    "large": GOOD + b"# a comment\n" * 10_000,
}


@pytest.fixture
def apart(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    syntax.begin()
    yield syntax._reader[0].pid
    syntax.end()


def said(node):
    if isinstance(node, Scalar):
        return node.line, node.column, node.text, node.plain
    if isinstance(node, Listing):
        return node.line, node.column, [said(item) for item in node.items]
    if isinstance(node, Mapping):
        return node.line, node.column, [(key, said(at), said(value)) for key, (at, value) in node.pairs.items()]
    return node


def read(parse, text):
    problems = []
    return said(parse(text, "web.yaml", problems)), problems


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_another_process_reads_the_same(apart, text):
    assert read(syntax.parse, text) == read(document.parse, text) == read(syntax.parse, text)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["ends", "hangs"])
def test_what_it_does_not_answer_is_read_here(apart, number):
    syntax._reader[0].channel.settimeout(0.1)
    os.kill(apart, number)
    assert read(syntax.parse, GOOD) == read(document.parse, GOOD)
    assert not syntax._reader
    with pytest.raises(ChildProcessError):
        os.waitpid(apart, 0)


def test_without_a_processor_for_it_there_is_none(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    syntax.begin()
    assert not syntax._reader


def test_no_yaml_is_imported_where_rules_are_made(tmp_path):
    file = tmp_path / "web.yaml"
    file.write_bytes(GOOD)
    program = (
        "import os, sys; os.sched_getaffinity = lambda _: {0, 1}\n"
        "from pathlib import Path; from enforcer import rules_in_force, syntax; syntax.begin()\n"
        "print(len(rules_in_force.load([Path(sys.argv[1])], Path(sys.argv[2])).policy.rules), 'yaml' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, file, tmp_path / "etc"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 False\n"


@pytest.mark.parametrize(
    "words", [["--rulez", "x"], ["--rules", "/nowhere.yaml", "--", "true"]], ids=["words", "rules"]
)
def test_it_is_gone_whatever_was_wrong_with_the_words(words):
    """It has every descriptor of who called it."""
    with contextlib.suppress(SystemExit):
        main(["run", "--no-service", *words])
    assert not syntax._reader
