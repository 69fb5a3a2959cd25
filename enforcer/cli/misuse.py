"""What is said of words that a command can't take: what was probably meant, and what is missing, with an example."""

import argparse
import ast
import re
from collections.abc import Iterable, Sequence
from typing import Final

from enforcer.cli.examples import example
from rules.problems import did_you_mean, quoted

_TERMS: Final = frozenset({"--for", "--covers", "--as-rule"})
_NO_TERMS: Final = ": a rejection has no terms; `exeat approvals revoke ID` lifts it"


def misuse(prog: str, actions: Sequence[argparse.Action], words: Sequence[str], message: str) -> str:
    """Put argparse's message in our words; a mistyped option comes before anything else that is wrong then too."""
    known = {word for action in actions for word in action.option_strings}
    options = words[: words.index("--")] if "--" in words else words
    for word in (option.partition("=")[0] for option in options):
        if word.startswith("--") and word not in known:
            hint = _NO_TERMS if prog == "exeat reject" and word in _TERMS else did_you_mean(word, known)
            return f"{quoted(word)} is not an option of `{prog}`{hint}"
    if found := re.fullmatch(r"the following arguments are required: (.+)", message):
        missing = [
            _called(action) for action in _named(actions, found[1].split(", ")) if action.nargs not in ("*", "?")
        ]
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, as in `{example(prog)}`"
    if found := re.fullmatch(r"argument (.+): expected one argument", message):
        [action] = _named(actions, [found[1]])
        value = f"{'an' if str(action.metavar)[0] in 'AEIOU' else 'a'} {action.metavar}"
        return f"`{found[1]}` needs {'one of ' + _choices(action) if action.choices else value} after it"
    if found := re.fullmatch(r"argument (.+?): invalid choice: (.+) \(choose from .+\)", message, re.DOTALL):
        return _not_a_choice(prog, found[1], ast.literal_eval(found[2]), actions)
    if found := re.fullmatch(r"unrecognized arguments: (.+)", message, re.DOTALL):
        return _left_over(prog, found[1])
    return message


def _left_over(prog: str, words: str) -> str:
    if words.startswith("-"):
        return f"{quoted(words.split(maxsplit=1)[0])} is not an option of `{prog}`; `{prog} --help` lists them"
    return f"`{prog}` takes no more words, and {quoted(words)} is left over, unlike in `{example(prog)}`"


def _not_a_choice(prog: str, name: str, word: object, actions: Sequence[argparse.Action]) -> str:
    """Say that a word is none of those that there are, and which was probably meant."""
    of = next(
        (action for action in actions if name in ("/".join(action.option_strings), action.metavar, action.dest)), None
    )
    choices = [] if of is None or of.choices is None else [str(choice) for choice in of.choices]
    instead = did_you_mean(str(word), choices) or f": use one of {', '.join(map(quoted, choices))}"
    where = f"`{name}`" if of is not None and of.option_strings else f"`{prog}`"
    return f"invalid value {quoted(str(word))} for {where}{instead}"


def _named(actions: Iterable[argparse.Action], names: Sequence[str]) -> list[argparse.Action]:
    return [action for action in actions if ("/".join(action.option_strings) or action.metavar or action.dest) in names]


def _called(action: argparse.Action) -> str:
    if action.choices:
        return f"one of {_choices(action)}"
    return f"`{' '.join((*action.option_strings[-1:], str(action.metavar)))}`"


def _choices(action: argparse.Action) -> str:
    return ", ".join(f"`{choice}`" for choice in action.choices or ())
