"""`exeat log keys`: the keys that sign the journal. Private halves are never shown or written elsewhere."""

import argparse
import sys
from pathlib import Path

from enforcer.journal.signing import keys, place
from enforcer.system import state
from enforcer.system.errors import HostError

_ACTIONS = ("list", "make", "export", "rotate")


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Do it; 0 when it was done, 1 when it couldn't be, 2 for misuse."""
    from proxy.telemetry.journal.keys import KeyProblem

    action = arguments.what or "list"
    if action not in _ACTIONS:
        from rules.problems import did_you_mean, quoted

        instead = did_you_mean(action, _ACTIONS) or f": use one of {', '.join(_ACTIONS)}"
        print(f"exeat: invalid value {quoted(action)} for `exeat log keys`{instead}", file=sys.stderr)
        return 2
    try:
        state.make_private(state.state_directory())
        return _do(action, directory)
    except (KeyProblem, HostError, OSError) as error:
        print(f"exeat: {error}", file=sys.stderr)
        return 1


def _do(action: str, directory: Path) -> int:
    from proxy.telemetry.journal.keys import current, known, make, pem

    if action == "make":
        try:
            print(make(keys()).id)
        except FileExistsError:
            print("exeat: there is a key already; `exeat log keys rotate` makes another", file=sys.stderr)
            return 1
        return 0
    try:
        now = current(keys())
    except FileNotFoundError:
        print("exeat: there is no key yet; the first `exeat run` makes one", file=sys.stderr)
        return 1
    if action == "rotate":
        return _rotate(directory)
    for name, key in known(keys()).items():
        if action == "export":
            print(pem(key), end="")
        else:
            print(f"{name}  {'signs now' if name == now else 'signed before'}")
    return 0


def _rotate(directory: Path) -> int:
    """Have another key sign, and the one before say so in the ledger: whoever trusts that one trusts both.

    What killed writers have left is signed first: it would be older than the newest signature, and in no ledger.
    """
    from proxy.telemetry.events import Kind, Mark
    from proxy.telemetry.journal.keys import rotate, says, signer
    from proxy.telemetry.journal.ledger import Ledger, Remark, sweep

    lock = place(directory) / "ledger.lock"
    if directory.is_dir():
        ledger = Ledger(directory, signer(keys()), lock)
        for found in sweep(directory, ledger):
            if isinstance(found, Remark):
                ledger.write([found])
            else:
                print(f"exeat: {found}", file=sys.stderr)
    before, after = rotate(keys())
    print(after.id)
    if directory.is_dir():
        ledger = Ledger(directory, before, lock)
        ledger.write([Remark(Kind.JOURNAL_KEY, Mark(after.id), says(after.public))])
    return 0
