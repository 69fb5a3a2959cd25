"""Merging what is protected as a question to people, where the rules that the task ran under want that.

The terms are those that were kept with the task's changes. What is approved is what was looked at: the question has the
digest of every change, and whoever merges looks again. What can't be asked, or isn't answered, is not merged.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.workspace import prints
from enforcer.workspace.beneath import What
from enforcer.workspace.change import Change
from enforcer.workspace.prints import Print
from enforcer.workspace.sides import Sides
from proxy.approvals.approval_request import File, Kind, Question
from proxy.approvals.protocol import Answer, Result
from proxy.telemetry.events import Approval

if TYPE_CHECKING:
    from enforcer.workspace.git_trees import Difference

type Ask = Callable[[Question], Answer]

_MOST_SHOWN: Final = 200  # paths
_MOST_BROUGHT, _LONGEST = 20, 400  # files in commits, characters of a path
_MOST_COUNTED: Final = 20  # whose lines are counted: a task can make each take a while
_ROOM: Final = 24 << 10  # bytes of them: a question has to fit into one packet, with the rules that want it
_FIRST: Final = {"changed": 1, "mode": 2, "deleted": 3, "added": 4}  # what is shown first; links before all


class Leave(NamedTuple):
    """What may be merged of what is protected: each path of `prints` as that says, if it isn't `refused`."""

    prints: Mapping[str, Print | None]
    refused: str = ""  # why none of it may, in words
    approval: Approval | None = None  # that gave it, as events name it

    def holds(self, path: str) -> bool:
        """Whether a path has to stay as it is, for all that was answered."""
        return bool(self.refused) and self.prints.get(path) is not None


NO_TERMS: Final = Leave({})


def sought(sides: Sides, changes: Iterable[Change], ask: Ask, brought: Iterable["Difference"] = ()) -> Leave:
    """Ask for the leave to merge these, where terms were kept and something would be merged. Raises HostError.

    `brought`: protected files that some of them bring along, which people are shown; the digest has them by the names
    of commits, as a reference's content has those.
    """
    meta = sides.kept.meta
    rules = meta.asks()
    if not rules:
        return NO_TERMS
    found = {change.path: change for change in changes}
    seen = {path: prints.look(sides, change) for path, change in found.items()}
    wanted = [each for each in seen.values() if each is not None]
    if not wanted:
        return Leave(seen)
    question = about(sides, found, wanted, brought)._replace(rules=rules)
    answer = ask(question)
    if answer.result is not Result.GRANTED:
        return Leave(seen, _refusal(answer))
    if {(grant.rule, grant.digest) for grant in answer.grants} != {(asks.rule, asks.digest) for asks in rules}:
        return Leave(seen, f"approval {answer.approval} is for other terms than these changes were made under")
    again = [each for path in seen if (each := prints.look(sides, found[path])) is not None]
    if prints.digest(meta, again) != question.digest:
        moved = f"it, or what it replaces, is not what was approved as {answer.approval}: accept again to ask anew"
        return Leave(seen, moved)
    given = tuple(grant.grant for grant in answer.grants)
    return Leave(seen, "", Approval(answer.approval, Kind.MERGE, answer.by, grants=given))


def about(
    sides: Sides, changes: Mapping[str, Change], wanted: Sequence[Print], brought: Iterable["Difference"] = ()
) -> Question:
    """Return what people are asked, without the rules that want it: bounded, and with the digest of all."""
    meta = sides.kept.meta
    inside = [*dict.fromkeys(brought)]
    return Question(
        Kind.MERGE,
        files=(*map(_brought, inside[:_MOST_BROUGHT]), *_shown(sides, changes, wanted)),
        total=len(wanted) + len(inside),
        digest=prints.digest(meta, wanted),
        revision=meta.revision,
    )


def _brought(each: "Difference") -> File:
    """Say what a commit or an index has; a path, and where it is, of which a question has room for some."""
    was, now = (f"file {version.mode & 0o7777:04o}" if version.mode else "" for version in (each.was, each.now))
    return File(each.path[:_LONGEST], "", each.kind.value, was, f"{now}, in {each.where}".lstrip(", "))


def _shown(sides: Sides, changes: Mapping[str, Change], wanted: Iterable[Print]) -> tuple[File, ...]:
    """Return what there is room to show, what may do most first."""
    from enforcer.workspace.show import count

    shown: list[File] = []
    room = _ROOM
    for each in sorted(wanted, key=_urgency)[:_MOST_SHOWN]:
        content = each.now.content if each.now.what == What.FILE else ""
        file = File(each.path, content, each.kind, each.was.said(), each.now.said())
        room -= sum(len(os.fsencode(text)) for text in (file.path, file.was, file.now)) * 3 + 256
        if room < 0 and shown:
            break
        is_counted = What.FILE in (each.was.what, each.now.what) and len(shown) < _MOST_COUNTED
        lines = count(sides, changes[each.path]) if is_counted else None
        shown.append(file if lines is None else file._replace(added=lines.added, deleted=lines.deleted))
    return tuple(shown)


def _urgency(each: Print) -> tuple[int, bytes]:
    return 0 if each.now.what == What.LINK else _FIRST.get(each.kind, 0), os.fsencode(each.path)


def _refusal(answer: Answer) -> str:
    """Say why nothing may be merged."""
    named = f" {answer.approval}" if answer.approval else ""
    match answer.result:
        case Result.TIMEOUT:
            return f"it waits for approval{named}: accept again when that is given"
        case Result.DENIED:
            why = f": {answer.why}" if answer.why else ""
            return f"{', '.join(answer.by) or 'somebody'} said no to approval{named}{why}"
        case _:
            return f"it needs an approval, and nobody could be asked: {answer.why or answer.result}"
