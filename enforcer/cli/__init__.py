"""The `exeat` command. The module of a subcommand is imported only when that is called."""

import errno
import gc
import os
import sys

from enforcer.cli.commands import COMMANDS, MODULES

TYPE_CHECKING = False  # typing's, whose import takes longer than all that `exeat run` does here
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from typing import NoReturn

    from enforcer.cli.parsing import Arguments


_WITHOUT_SERVICE = frozenset({"-h", "--help", "--no-service"})


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
    except OSError as error:
        if (unsaid := status_of_output_error(error)) is None:
            raise
        return unsaid
    if argv is None:
        _end(status)
    return status


def status_of_output_error(error: OSError) -> int | None:
    """Return the status to end with where our output can't be written; None: it is another error.

    Nothing more is to be written at exit either.
    """
    if isinstance(error, BrokenPipeError):
        status = 141  # whoever read it has enough
    elif is_disk_full(error):
        print(f"exeat: cannot write the output: {error.strerror}", file=sys.stderr)
        status = 2
    else:
        return None
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def is_disk_full(error: OSError) -> bool:
    """Whether our output goes to a full disk: what fails by its path has a `filename`; reading needs no room."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    if name == "run" and (status := _in_service(words[1:])) is not None:
        return status
    return _do(name, words)


def _do(name: str, words: list[str]) -> int:
    from enforcer.cli.parsing import Parser

    arguments, run = load_command(name)
    return perform(run, Parser.of(name, arguments).read(words[1:]))


def load_command(name: str) -> "tuple[Arguments, Callable[[Namespace], int]]":
    """Return what a command takes, and what does it: `ARGUMENTS` and `run` of its module.

    In a module that several commands share, each has its name in those.
    """
    from importlib import import_module

    module = import_module(f"enforcer.cli.{MODULES.get(name, name)}")
    if name not in MODULES:
        return module.ARGUMENTS, module.run
    return getattr(module, f"{name.upper()}_ARGUMENTS"), getattr(module, f"run_{name}")


def perform(run: "Callable[[Namespace], int]", arguments: "Namespace") -> int:
    """Do a command and return its exit status. What it raises of what is foreseen is said, and is a status."""
    from enforcer.system.errors import ExeatError
    from rules.problems import RuleFileError

    try:
        return run(arguments)
    except RuleFileError as error:
        print(error, file=sys.stderr)
        return 2
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status


def _in_service(words: list[str]) -> int | None:
    """Run a task in the service, where there is one and it is wanted; None: without it."""
    if _WITHOUT_SERVICE.intersection(words[: words.index("--")] if "--" in words else words):
        return None
    from enforcer.system.control_socket import control_path

    if not os.path.exists(control_path()):
        return None
    from enforcer.service import client  # only where there may be a service

    status = client.run(words)
    if status is None or status & 0x7F == 0:
        return None if status is None else status >> 8
    from enforcer.cli.run import end_as_task  # it ended by a signal

    return end_as_task(status)


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed: whatever is opened next would take its place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one


def _end(status: int) -> "NoReturn":
    """End at once: to take apart all that was imported is an eighth of the CPU time of `exeat run -- true`."""
    try:
        if sys.stderr:
            sys.stderr.flush()
    except OSError:
        pass
    os._exit(status)


def _print_help() -> None:
    print("usage: exeat COMMAND [OPTIONS]\n\nRun untrusted tasks behind one gate that decides what leaves.\n")
    width = max(map(len, COMMANDS))
    for name, says in COMMANDS.items():
        print(f"  {name:<{width}}  {says}")
    print("\n`exeat COMMAND --help` shows the options of a command, `exeat --version` the version.")
    print("Start with `exeat doctor`, then `exeat run --rules FILE -- COMMAND`; README.md has a first rule file.")
