"""Holds the words of the project: names of files, classes and options, and the length of sentences in the docs."""

import ast
import collections
import re

import pytest

from enforcer import cli
from enforcer.cli.commands import COMMANDS
from tests.support import harness

ROOT = harness.PROJECT
FILES = sorted(path for floor in ("rules", "proxy", "enforcer") for path in (ROOT / floor).rglob("*.py"))
# Metaphors, participles and pronouns that the glossary replaced: none may come back in a name.
BANNED = frozenset(
    [
        "admitted",
        "ahead",
        "apart",
        "aside",
        "asked",
        "asker",
        "asking",
        "beneath",
        "broker",
        "chains",
        "clerk",
        "covers",
        "crew",
        "desk",
        "echoes",
        "exchange",
        "far",
        "fence",
        "guest",
        "habits",
        "held",
        "house",
        "hull",
        "inband",
        "jar",
        "judging",
        "keyholder",
        "kept",
        "lane",
        "leaks",
        "lines",
        "lodging",
        "lookalikes",
        "misuse",
        "near",
        "office",
        "paper",
        "player",
        "playing",
        "portion",
        "prints",
        "recall",
        "recipe",
        "regular",
        "rehearsal",
        "room",
        "rounds",
        "ruling",
        "said",
        "sayings",
        "seat",
        "seen",
        "shapes",
        "sides",
        "sight",
        "sinks",
        "spare",
        "station",
        "story",
        "telling",
        "tenancy",
        "tenant",
        "told",
        "trail",
        "unasked",
        "unusual",
        "unwritten",
        "usual",
        "visit",
        "vouched",
        "walking",
        "wanted",
        "warming",
        "ward",
        "watcher",
        "what",
        "where",
        "whereabouts",
        "whose",
        "witness",
    ]
)
SHARED = {
    "__init__.py",
    "__main__.py",
    "client.py",
    "server.py",
    "messages.py",
}  # the folder makes the difference plain
UNWINDING = {"_New"}  # no error: it unwinds a process that was just forked
LONGEST = 35  # words
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def words(name: str) -> set[str]:
    """The words of a name in snake_case or CamelCase."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def classes():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield f"{path.relative_to(ROOT)}: {node.name}", node.name


def test_file_names_are_words_of_the_field():
    assert [str(path.relative_to(ROOT)) for path in FILES if words(path.stem) & BANNED] == []


def test_class_names_are_words_of_the_field():
    assert [where for where, name in classes() if words(name) & BANNED] == []


def test_exceptions_end_in_error():
    bases = {"Exception", "OSError", "ValueError", "RuntimeError", "LookupError", "KeyError"}
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in bases for base in node.bases):
                wrong += [f"{path.relative_to(ROOT)}: {node.name}"] * (
                    not node.name.endswith("Error") and node.name not in UNWINDING
                )
    assert wrong == []


@pytest.mark.parametrize("command", COMMANDS)
def test_option_names_are_words_of_the_field(command):
    import argparse

    from enforcer.cli.parsing import add_arguments

    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser, cli.load_command(command)[0])
    shown = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
    assert [option for action in shown for option in action.option_strings if words(option) & BANNED] == []


def test_no_three_folders_share_a_file_name():
    folders = collections.defaultdict(list)
    for path in FILES:
        folders[path.name].append(str(path.parent.relative_to(ROOT)))
    assert {name: where for name, where in folders.items() if len(where) > 2 and name not in SHARED} == {}


def sentences(page: str) -> list[str]:
    """The sentences of a page's prose: no code, tables, headings or links' targets."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", page, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#"))))
    return re.split(r"(?<=[.!?:;])\s+|\n\s*\n|\n\s*- |\n\s*\d+\. ", text)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_sentences_of_a_page_are_short(page):
    assert [one for one in sentences(page.read_text()) if len(one.split()) > LONGEST] == []


def test_names_are_split_into_words():
    assert words("WhoseAsked") == {"whose", "asked"}
    assert words("held_body") == {"held", "body"}
    assert words("TLSKey") == {"tls", "key"}
    page = "# T\n\nOne two. Three\nfour: five\n\nsix\n- [a](b.md)\n"
    assert [one.strip() for one in sentences(page) if one.strip()] == ["One two.", "Three\nfour:", "five", "six", "[a]"]
