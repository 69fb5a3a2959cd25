"""Generates what the code knows already: option tables of the reference, man pages and shell completion.

`python -m docs.generate` rewrites the tables between `<!-- generated: NAME -->` and `<!-- end -->` in docs/reference.
`python -m docs.generate --into DIR` writes DIR/man/man1/exeat*.1 and DIR/completion/{exeat.bash,_exeat,exeat.fish}.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from enforcer import cli
from enforcer.cli.commands import COMMANDS, EXAMPLES, USAGES
from enforcer.cli.parsing import add_arguments
from rules.explain.reasons import REASONS
from rules.loading.json_schema import rule_file_schema

REFERENCE = Path(__file__).parent / "reference"
BLOCK = re.compile(r"(?<=<!-- generated: )(?P<name>[^>]+)(?P<open> -->\n)(?P<text>.*?)(?P<end><!-- end -->)", re.DOTALL)
SHELLS = {"bash": "exeat.bash", "zsh": "_exeat", "fish": "exeat.fish"}
SUMMARY = "Run untrusted tasks behind one gate that decides what leaves."


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    made = argparse.ArgumentParser(
        prog=f"exeat {name}",
        description=f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.",
        usage=USAGES.get(name),
        allow_abbrev=False,
    )
    add_arguments(made, cli.load_command(name)[0])
    return made


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser with every command as a subcommand, as completion tools expect it."""
    made = argparse.ArgumentParser(prog="exeat", description=SUMMARY)
    made.add_argument("--version", action="store_true", help="print the version")
    commands = made.add_subparsers(metavar="COMMAND")
    for name, summary in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=summary, description=summary), cli.load_command(name)[0])
    return made


def rows(actions: Iterable[argparse.Action]) -> Iterator[str]:
    """Return the rows of a table of options and arguments."""
    for action in actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:  # noqa: SLF001
            continue
        value = "" if action.nargs == 0 else f" {_value(action)}"
        words = ", ".join(f"`{word}{value}`" for word in action.option_strings) or f"`{_value(action)}`"
        yield f"| {_cell(words)} | {_cell(action.help or '')} |"


def options(name: str) -> str:
    """Return the table of one command's options and arguments."""
    table = list(rows(parser_of(name)._actions))  # noqa: SLF001 - argparse has no public name for them
    return "\n".join(["| option | meaning |", "|---|---|", *table]) if table else "It takes no options."


def _value(action: argparse.Action) -> str:
    if action.metavar:
        value = str(action.metavar)
    elif action.choices:
        value = "|".join(map(str, action.choices))
    else:
        value = action.dest.upper()
    return f"[{value}]" if action.nargs == argparse.OPTIONAL else value


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|")


def reasons() -> str:
    """Return the table of reasons."""
    table = ["| reason | meaning | what to do |", "|---|---|---|"]
    for reason, text in sorted(REASONS.items()):
        detail = f". {text.detail}" if text.detail else ""
        table.append(f"| `{reason}` | {_cell(text.meaning)}{_cell(detail)} | {_cell(text.remedy)} |")
    return "\n".join(table)


def rule_keys() -> str:
    """Return a table of the keys of each mapping of a rule file, from its JSON Schema."""
    schema = rule_file_schema()
    parts = {"The file": schema} | {f"`{name}`": one for name, one in schema["definitions"].items()}
    return "\n\n".join(f"## {title}\n\n{_keys(one)}" for title, one in parts.items() if "properties" in one)


def _keys(schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        f"| `{key}` | {_kind(one)} | {_cell(one.get('description', ''))}{' Required.' * (key in required)} |"
        for key, one in schema["properties"].items()
    ]
    return "\n".join(["| key | value | meaning |", "|---|---|---|", *rows])


def _kind(schema: dict[str, Any]) -> str:
    """Name the values that a key takes, in a few words."""
    if reference := schema.get("$ref"):
        return f"[{(name := reference.rpartition('/')[2])}](#{name})"
    if "enum" in schema:
        return ", ".join(f"`{_spelled(value)}`" for value in dict.fromkeys(map(_spelled, schema["enum"])))
    for several in ("allOf", "anyOf", "oneOf"):
        if several in schema:
            return _either([_kind(one) for one in schema[several]])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(more := schema.get("additionalProperties"), dict):
        return f"mapping to {_kind(more)}"
    kinds = schema.get("type", "any value")
    return _either([kinds] if isinstance(kinds, str) else kinds)


def _either(kinds: list[str]) -> str:
    """Join kinds of values; YAML's numbers and booleans are read as the strings that they were written as."""
    named = [{"object": "mapping"}.get(kind, kind) for kind in dict.fromkeys(kinds)]
    if "string" in named:
        named = [kind for kind in named if kind not in {"number", "integer", "boolean"}]
    if len(named) == 2 and named[1] == f"list of {named[0]}":
        return f"{named[0]}, or a list"
    return " or ".join(named)


def _spelled(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def blocks() -> dict[str, Callable[[], str]]:
    """Return what makes the text of each block, by the block's name."""
    return {f"options of exeat {name}": partial(options, name) for name in COMMANDS} | {
        "reasons": reasons,
        "rule keys": rule_keys,
    }


def fill(page: str) -> str:
    """Return a page with its generated blocks made anew; KeyError for a block that nothing makes."""
    known = blocks()
    return BLOCK.sub(lambda found: f"{found['name']}{found['open']}\n{known[found['name']]()}\n\n{found['end']}", page)


def man_pages(directory: Path) -> None:
    """Write one man page for the program and one for each command."""
    from argparse_manpage.manpage import Manpage  # of the extra `docs` alone

    directory.mkdir(parents=True, exist_ok=True)
    for name, made in {"exeat": whole_parser(), **{f"exeat-{name}": parser_of(name) for name in COMMANDS}}.items():
        about = {"project_name": "exeat", "version": version("exeat"), "manual_title": "Exeat manual"}
        command = name.removeprefix("exeat-")
        page = str(Manpage(made, about | {"prog": name}))
        # The library takes `exeat run` for page RUN of exeat, and a NAME without a summary is not found by apropos(1).
        page = re.sub(r"\A\.TH .*? \"\w+\"", f'.TH {name.upper()} "1"', page)
        page = re.sub(r"(?<=\.SH NAME\n).*", f"{name} \\\\- {COMMANDS.get(command, SUMMARY)}", page, count=1)
        if command in EXAMPLES:
            page += f".SH EXAMPLE\n.nf\n{EXAMPLES[command]}\n.fi\n"
        (directory / f"{name}.1").write_text(page)


def completions(directory: Path) -> None:
    """Write the completion script of each shell."""
    import shtab  # of the extra `docs` alone

    directory.mkdir(parents=True, exist_ok=True)
    made = whole_parser()
    for action in _all_actions(made):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # the name that shtab reads
    for shell, name in SHELLS.items():
        (directory / name).write_text(shtab.complete(made, shell))


def _all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public name for them
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for inner in action.choices.values():
                yield from _all_actions(inner)


def main() -> int:
    """Rewrite the reference, or write what packages install."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--into", type=Path, metavar="DIR", help="write man pages and completion there")
    into = words.parse_args().into
    if into is None:
        for page in sorted(REFERENCE.glob("*.md")):
            before = page.read_text()
            if (after := fill(before)) != before:
                page.write_text(after)
                print(f"{page.name}: made anew")
        return 0
    man_pages(into / "man/man1")
    completions(into / "completion")
    return 0


if __name__ == "__main__":
    sys.exit(main())
