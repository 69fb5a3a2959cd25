"""The `exeat` command: one module a subcommand, imported only when it is called."""

import argparse
import contextlib
import gc
import importlib
import os
import sys
from typing import NoReturn

COMMANDS = {
    "run": "run a task whose only way to the network is the gate",
    "changes": "show, accept or discard what tasks changed in a workspace that is reviewed",
    "check": "check rule files: every problem with its place and the correction",
    "explain": "say what the rules decide about one attempt, and why",
    "test": "run the tests that rule files carry",
    "presets": "list and show what is shipped, and lock where this machine's registries are",
    "diff": "say what other rules would decide otherwise, by meaning and not by text",
    "schema": "print the JSON Schema of rule files, for editors",
    "replay": "say what other rules would change for what a journal tells",
    "learn": "write the smallest rule file that allows what a journal tells was let out",
    "log": "show the journal: what was decided, and why",
    "top": "show what tasks try just now, on one screen",
    "report": "write a page about what a task tried, for a ticket",
    "ca": "show the installation's own CA, replace it, or write its certificate",
    "doctor": "say whether this machine can run sandboxes, and what to do if not",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status; without `argv` this is the program itself, and ends."""
    _open_standard_streams()
    gc.disable()  # a command is over before there is garbage worth a tenth of its time; the worker turns it on again
    words = sys.argv[1:] if argv is None else argv
    try:
        status = _run(words)
        if sys.stdout:  # None where a shell closed it for us
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough; nothing more is to be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    if argv is None:
        _end(status)
    return status


def _run(words: list[str]) -> int:
    if words[:1] == ["help"] and words[1:2]:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        _print_help()
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"exeat {version('exeat')}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"exeat: `{name}` is not a command; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"enforcer.cli.{name}")
    parser = _Parser(prog=f"exeat {name}", description=COMMANDS[name], allow_abbrev=False)
    parser.words = words[1:]
    module.add_arguments(parser)
    # Options and names may come in any order, but for `run`, whose command has words of its own, and behind a `--`
    parse = parser.parse_args if name == "run" or "--" in words else parser.parse_intermixed_args
    arguments = parse(words[1:])
    return int(module.run(arguments))


class _Parser(argparse.ArgumentParser):
    """Says in our words what is wrong, and ends the help with an example."""

    words: "list[str]"

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit 2."""
        from enforcer.cli.misuse import misuse

        super().error(misuse(self.prog, self._actions, self.words, message))

    def format_help(self) -> str:
        """Return the help."""
        from enforcer.cli.examples import example

        return f"{super().format_help()}\nexample:\n  {example(self.prog)}\n"


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed: whatever is opened next would take its place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one


def _end(status: int) -> NoReturn:
    """End at once: to take apart all that was imported is an eighth of the CPU time of `exeat run -- true`."""
    with contextlib.suppress(OSError):
        if sys.stderr:
            sys.stderr.flush()
    os._exit(status)


def _print_help() -> None:
    print("usage: exeat COMMAND [OPTIONS]\n\nRun untrusted tasks behind one gate that decides what leaves.\n")
    width = max(map(len, COMMANDS))
    for name, says in COMMANDS.items():
        print(f"  {name:<{width}}  {says}")
    print("\n`exeat COMMAND --help` says more about each, `exeat --version` which version this is.")
    print("Begin with `exeat doctor`, then `exeat run --rules FILE -- COMMAND`; README.md has a first rule file.")
