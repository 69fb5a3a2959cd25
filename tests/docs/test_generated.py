"""What docs/generate.py makes: the tables of the reference, man pages, completion for three shells."""

import re
import shutil
import subprocess

import pytest

from docs import generate
from enforcer.cli.commands import COMMANDS
from tests.support import harness

DASHES = str.maketrans("\u2010\u2212", "--")
PAGES = sorted(generate.REFERENCE.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_generated_tables_of_a_page_are_current(page):
    """`python -m docs.generate` makes them anew."""
    assert generate.fill(page.read_text()) == page.read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("generated")
    generate.man_pages(directory / "man1")
    generate.completions(directory / "completion")
    return directory


def test_each_command_has_a_man_page_that_troff_reads(made):
    names = {"exeat", *(f"exeat-{name}" for name in COMMANDS)}
    assert {path.stem for path in (made / "man1").iterdir()} == names
    if shutil.which("groff") is None:
        harness.missing("groff")
    for page in (made / "man1").iterdir():
        read = subprocess.run(
            ["groff", "-Kutf8", "-man", "-Tutf8", "-P-cbou", "-ww", page], capture_output=True, text=True
        )
        assert read.returncode == 0
        assert read.stderr == ""
        summary = re.search(r"NAME\n +(\S+) +- +\w+", read.stdout.translate(DASHES))
        assert summary
        assert summary[1] == page.stem


def test_bash_completes_commands_options_and_values(made):
    script = f"""
source {made}/completion/exeat.bash
complete_words() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  "$(complete -p exeat | sed 's/.* -F \\([^ ]*\\).*/\\1/')" exeat "${{@: -1}}" "${{@: -2:1}}"
  echo "${{COMPREPLY[@]}}"
}}
complete_words exeat rep
complete_words exeat run --rul
complete_words exeat check --format s
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["replay report", "--rules", "sarif"], done.stderr


def test_old_spellings_of_options_are_neither_in_man_pages_nor_completed(made):
    pages = [path.read_text() for path in (*(made / "man1").iterdir(), *(made / "completion").iterdir())]
    assert not [page for page in pages if re.search(r"\\?-\\?-plan\b|\\?-\\?-covers\b|SUPPRESS", page)]
