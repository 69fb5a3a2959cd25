"""What `exeat check` reads beside rule files: `approvers.yaml`, who may approve; `identities.yaml`, who may claim what.

Such a file is known by its keys, and where those say nothing by its name. The one that counts has to be trusted, too.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.cli.words import several
from enforcer.system.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rules.lint.finding import Finding
    from rules.problems import Problem

_ABOUT: Final = {"approvers": "who may approve", "identities": "who may claim which tasks"}
_TODO: Final = {
    "approvers": "mend it: until it is right nobody can approve anything",
    "identities": "mend it: until it is right nothing starts on a host that has it",
}


class Other(NamedTuple):
    """A file that is none of rules, and what is wrong with it."""

    kind: str  # approvers, identities
    findings: "list[Finding]"
    holds: str  # in words; empty where it is broken

    @property
    def about(self) -> str:
        """Say what such a file is about."""
        return _ABOUT[self.kind]


def named_like_one(file: Path) -> bool:
    """Whether a file has the name of one."""
    return file.stem in _ABOUT


def other(file: Path) -> Other | None:
    """Read a file as what it is; None: it is a rule file, or can't be told from one."""
    from rules.files import contents
    from rules.problems import Problem, RuleFileError

    try:
        data = contents(file)
    except (OSError, ValueError):
        return None  # whoever takes it for a rule file says so
    kind = _kind(data, file)
    if not kind:
        return None
    read, in_force, trusted = _readers(kind)
    try:
        holds = read(data, str(file))
        if os.path.abspath(file) == str(in_force):
            trusted(file)
    except RuleFileError as error:
        return Other(kind, _findings(kind, error.problems), "")
    except HostError as error:
        return Other(kind, _findings(kind, [Problem(str(file), 1, 1, str(error))]), "")
    return Other(kind, [], holds)


def _findings(kind: str, problems: "Sequence[Problem]") -> "list[Finding]":
    from rules.lint.codes import BROKEN
    from rules.lint.finding import from_problem

    check = BROKEN._replace(todo=_TODO[kind])
    return [from_problem(problem, check) for problem in problems]


def _kind(data: bytes, file: Path) -> str:
    """Say what kind of file this is; empty: of rules."""
    from proxy.approvals.approvers_file import FILE_KEYS as APPROVERS
    from rules.loading.document import Mapping, parse
    from rules.loading.identities import FILE_KEYS as IDENTITIES
    from rules.loading.keys import FILE_KEYS as RULES

    root = parse(data, str(file), [])
    keys = set(root.pairs) if isinstance(root, Mapping) else set()
    for kind, own in ((("", RULES)), ("approvers", APPROVERS), ("identities", IDENTITIES)):
        if keys & set(own) - {"version"}:
            return kind
    return file.stem if named_like_one(file) else ""


def _readers(kind: str) -> tuple[Callable[[bytes, str], str], Path, Callable[[Path], object]]:
    """Return what reads its text, where the one that counts lies, and what reads that one."""
    if kind == "approvers":
        from enforcer.approvals import approvers

        def trusted(file: Path) -> None:
            from proxy.approvals.approvers_file import read_people

            approvers.trust(file)
            read_people(file)

        return _approvers, approvers.place(), trusted
    from enforcer.policy import run_request

    return _identities, run_request.identities_file(), lambda _: run_request.known_identities()


def _approvers(data: bytes, file: str) -> str:
    from proxy.approvals.approvers_file import parse_people

    found = parse_people(data, file)
    people = "1 person" if len(found.people) == 1 else f"{len(found.people)} people"
    counted = [(found.groups, "group"), (found.reviewers, "reviewer"), (found.notices, "notifier")]
    return ", ".join([people, *(several(len(many), what) for many, what in counted if many)])


def _identities(data: bytes, file: str) -> str:
    from rules.loading.identities import parse_identities

    count = len(parse_identities(data, file).entries)
    return "1 identity" if count == 1 else f"{count} identities"
