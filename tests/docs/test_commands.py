"""docs/reference/commands.md and the commands say the same."""

import argparse
import re
from pathlib import Path

import pytest

from enforcer import cli
from enforcer.cli import COMMANDS
from enforcer.cli.parsing import add_arguments

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = dict(
    re.findall(
        r"^## exeat (\w+)\n(.*?)(?=^## |\Z)", (DOCS / "reference/commands.md").read_text(), re.MULTILINE | re.DOTALL
    )
)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_section_of_a_command_has_its_generated_options_once(command):
    assert re.findall(r"<!-- generated: (.*?) -->", SECTIONS[command]) == [f"options of exeat {command}"]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_of_a_command_is_documented_and_no_other(command):
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser, cli.load_command(command)[0])
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    options = {word for action in shown for word in action.option_strings}
    table = re.search(r"<!-- generated: .*?<!-- end -->", SECTIONS[command], re.DOTALL)[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {word for row in rows for word in re.findall(r"`(-[-\w]+) ?", row)} - {"--"} == options
    written = re.sub(r"`(?:exeat|curl|git) [^`]*`", "", SECTIONS[command])
    assert set(re.findall(r"(?<=`)--?[a-z][-\w]*", written)) <= options


def test_every_option_of_another_command_that_is_named_exists():
    for command, option in re.findall(r"`exeat (\w+) [^`]*?(--[a-z][-\w]*)", "".join(SECTIONS.values())):
        parser = argparse.ArgumentParser(add_help=False)
        add_arguments(parser, cli.load_command(command)[0])
        assert option in {word for action in parser._actions for word in action.option_strings}, command


def test_every_command_has_a_section():
    assert set(SECTIONS) == set(COMMANDS)


def test_links_between_pages_resolve():
    for page in [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} leads to {target}"


def test_anchors_of_links_exist():
    for page in [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            text = (page.parent / target).read_text() if target else page.read_text()
            titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}  # as forges make them
            assert anchor in slugs, f"{page.name} leads to {target}#{anchor}"


def test_files_named_on_pages_exist():
    for page in [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]:
        for named in re.findall(r"`((?:rules|proxy|enforcer|tests|docs|containers)/[\w./]*)`", page.read_text()):
            assert (DOCS.parent / named).exists(), f"{page.name} names {named}"
