"""The `exeat` command: one module a subcommand, imported only when it is called."""

import argparse
import gc
import importlib
import os
import sys

COMMANDS = {
    "run": "run a task whose only way to the network is the gate",
    "check": "check rule files: every problem with its place and the correction",
    "explain": "say what the rules decide about one attempt, and why",
    "test": "run the tests that rule files carry",
    "log": "show the journal: what was decided, and why",
    "doctor": "say whether this machine can run sandboxes, and what to do if not",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    _open_standard_streams()
    gc.disable()  # a command is over before there is garbage worth a tenth of its time; the worker turns it on again
    words = sys.argv[1:] if argv is None else argv
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
    parser = argparse.ArgumentParser(prog=f"exeat {name}", description=COMMANDS[name], allow_abbrev=False)
    module.add_arguments(parser)
    arguments = parser.parse_args(words[1:])
    try:
        return int(module.run(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough; nothing more is to be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed: whatever is opened next would take its place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one


def _print_help() -> None:
    print("usage: exeat COMMAND [OPTIONS]\n\nRun untrusted tasks behind one gate that decides what leaves.\n")
    width = max(map(len, COMMANDS))
    for name, says in COMMANDS.items():
        print(f"  {name:<{width}}  {says}")
    print("\n`exeat COMMAND --help` says more about each.")
