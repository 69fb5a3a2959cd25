"""Mistyped options are told with the one that was meant, what is missing with an example, and help has a line for each."""

import argparse
import shlex
from functools import partial

import pytest

from enforcer import cli
from enforcer.cli import COMMANDS, main
from enforcer.cli.commands import EXAMPLES
from enforcer.cli.parsing import Parser, add_arguments

MISTYPED = [
    (("check", "--fromat", "json", "x.yaml"), "`--fromat` is not an option of `exeat check`; did you mean `--format`?"),
    (("check", "--format=json", "--strickt", "x"), "`--strickt` is not an option of `exeat check`; did you mean `--strict`?"),
    (("explain", "--rule", "x.yaml", "x:1"), "`--rule` is not an option of `exeat explain`; did you mean `--rules`?"),
    (("run", "--rule", "x.yaml", "--", "true", "--rulez"), "`--rule` is not an option of `exeat run`; did you mean `--rules`?"),
    (("run", "-q", "--", "true"), "`-q` is not an option of `exeat run`; `exeat run --help` lists them"),
    (("schema", "--qqqqqqqq"), "`--qqqqqqqq` is not an option of `exeat schema`"),
    (("run", "--rules"), "`--rules` needs a FILE after it"),
    (("check",), "`FILE` is missing, as in `exeat check web.yaml`"),
    (("check", "x", "--format"), "`--format` needs one of `text`, `json`, `sarif` after it"),
    (("learn", "-o"), "`-o/--output` needs a FILE after it"),
    (("ca",), "one of `show`, `rotate`, `export` is missing, as in `exeat ca export ca.pem`"),
    (("presets",), "one of `list`, `show`, `lock` is missing, as in `exeat presets show pip`"),
    (("check", "x", "--format", "yaml"), "invalid value `yaml` for `--format`: use one of `text`, `json`, `sarif`"),
    (("ca", "sow"), "invalid value `sow` for `exeat ca`; did you mean `show`?"),
    (("check", "x", "--ignore", "0"), "argument --ignore: `0` is not the code of a finding"),
    (("doctor", "x", "y"), "`exeat doctor` takes no more words, and `x y` is left over, unlike in `exeat doctor`"),
    (("replay",), "`--rules FILE` is missing, as in `exeat replay --rules new.yaml --since 1d`"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), MISTYPED, ids=[" ".join(row[0]) for row in MISTYPED])
def test_mistyped_option_gets_a_suggestion(words, says, capsys):
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"exeat {words[0]}: error: {says}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_each_word_and_ends_with_an_example_that_parses(command, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser, cli.load_command(command)[0])
    assert [action.dest for action in parser._actions if not action.help] == []
    words = shlex.split(EXAMPLES[command].partition(" >")[0])
    assert words[:2] == ["exeat", command]
    parser.parse_args(words[2:])
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert capsys.readouterr().out.endswith(f"\nexample:\n  {EXAMPLES[command]}\n")


OLD_SPELLINGS = [
    ("run", ("--plan", "--", "true"), ("--dry-run", "--", "true"), "`--plan` is now `--dry-run`"),
    ("shell", ("--plan",), ("--dry-run",), "`--plan` is now `--dry-run`"),
    ("approve", ("7f3k", "--covers", "rule"), ("7f3k", "--scope", "rule"), "`--covers` is now `--scope`"),
    ("approvals", ("approve", "7f3k", "--covers=rule"), ("approve", "7f3k", "--scope=rule"), "`--covers` is now `--scope`"),
    ("log", ("keep", "--age", "90d"), ("retention", "--age", "90d"), "`exeat log keep` is now `exeat log retention`"),
    ("log", ("--now", "keep"), ("--now", "retention"), "`exeat log keep` is now `exeat log retention`"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "old", "new", "says"), OLD_SPELLINGS)
def test_old_option_works_and_names_the_new_one(command, old, new, says, capsys):
    parser = partial(Parser.of, command, cli.load_command(command)[0])
    assert parser().read(new) == parser().read(old)
    said = capsys.readouterr()
    assert said.err == f"exeat: {says}; the next release no longer takes `{says.split('`')[1]}`\n"
    assert said.out == ""


@pytest.mark.parametrize(("command", "word"), [("run", "--plan"), ("approve", "--covers"), ("log", "keep,")])
def test_old_option_is_not_in_the_help(command, word, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert word not in capsys.readouterr().out


def test_old_option_is_named_once_beside_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["approve", "--covers", "rule"])
    said = capsys.readouterr().err
    assert said.count("is now `--scope`") == 1
    assert said.endswith("`ID` is missing, as in `exeat approve 7f3k --for 1h --why 'reviewed with bo'`\n")


def test_every_command_has_an_example():
    assert list(EXAMPLES) == list(COMMANDS)
