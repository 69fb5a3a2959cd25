"""Rules as they were read, and what was seen of their files then: as long as that is the same, so is what they hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from enforcer.policy import rules_in_force
from enforcer.policy.reload import absolute, fingerprint
from rules.matching.policy import Policy


class Seen(NamedTuple):
    """What was read, and of which files."""

    policy: Policy
    asked: tuple[str, ...]  # all that were looked at for it, absolute
    fingerprint: str  # of those; empty: they changed while they were read, so they are to be read again


def read(files: Sequence[Path], system: Path) -> Seen:
    """Read these files and root's. Raises as `rules_in_force.load`."""
    named = absolute(files)
    before = fingerprint(named, system)
    loaded = rules_in_force.load(files, system)
    asked = absolute(loaded.asked)
    after = fingerprint(named, system)
    if after != before:
        return Seen(loaded.policy, asked, "")
    return Seen(loaded.policy, asked, after if asked == named else fingerprint(asked, system))
