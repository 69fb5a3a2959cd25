"""`exeat shell`: an interactive shell in the box that `exeat run` would give a task, to look around and try things."""

import argparse
import os
import sys
from pathlib import Path

from enforcer.cli import run as runs
from enforcer.policy.rules_in_force import SYSTEM
from enforcer.sandbox.system_paths import SYSTEM as SHOWN
from enforcer.sandbox.system_paths import contains

_USUAL = "/bin/sh"
_NONE = frozenset({"nologin", "false"})  # of accounts that nobody uses


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat shell` takes: the options of `exeat run`."""
    runs.add_options(parser)


def run(arguments: argparse.Namespace, system: Path = SYSTEM) -> int:
    """Run the shell; the exit status is its own, or as of `exeat run`. `system`: for tests, not for users."""
    if not (arguments.plan or os.isatty(0)):
        print("exeat: a shell is for a terminal; run a script with `exeat run -- sh SCRIPT`", file=sys.stderr)
        return 2
    shell = shell_for(os.environ.get("SHELL", ""), (*arguments.read, arguments.workspace or os.getcwd()))
    arguments.command = ["--", shell, "-i"]
    arguments.env = [*arguments.env, f"SHELL={shell}"]
    return runs.run(arguments, system)


def shell_for(wanted: str, shown: "tuple[str, ...]") -> str:
    """Return the shell that is wanted, if it is a program that the sandbox shows; else the one that is always there."""
    if not os.path.isabs(wanted) or not os.access(wanted, os.X_OK) or os.path.basename(wanted) in _NONE:
        return _USUAL
    places = (*SHOWN, *map(os.path.realpath, shown))
    seen = all(any(contains(place, path) for place in places) for path in (wanted, os.path.realpath(wanted)))
    return wanted if seen else _USUAL
