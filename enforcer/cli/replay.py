"""`exeat replay`: what other rules would decide differently about the attempts in a journal."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from enforcer.cli import journals
from enforcer.cli.output import count_of
from enforcer.cli.parsing import FORMAT, argument
from enforcer.policy.rule_files import SYSTEM, load
from enforcer.system.errors import HostError, UsageError
from proxy.telemetry.journal.query import Progress
from proxy.telemetry.replay.replay import Group, Replay, ReplayedDecision, Tally
from proxy.telemetry.summary import KIND_WORDS
from proxy.telemetry.visible import visible

_WORDS = {
    "blocked": "blocked",
    "asked": "held for approval",
    "audited": "allowed by audit mode",
    "flagged": "flagged",
    "allowed": "allowed",
}
_HEADINGS = {
    "breaks": "would break:",
    "opens": "would newly pass:",
    "otherwise": "would be decided otherwise, with the same effect:",
}


ARGUMENTS: Final = (
    *journals.ARGUMENTS,
    argument("--rules", "FILE...", "rule file; several form one policy", required=True),
    FORMAT,
)


def run(arguments: argparse.Namespace, system: Path | None = None) -> int:
    """Decide it all again, under root's rules too: 0 when it is certain that nothing changes, 2 for misuse, else 1.

    `system`: where root's rules lie; for tests, not for users.
    """
    try:
        policy = load(arguments.rules, system or SYSTEM).policy
    except HostError as error:
        raise UsageError(str(error)) from error
    path = journals.find_journal(arguments.journal)
    replay, progress = Replay(policy, datetime.now(UTC).date()), Progress()
    with journals.report_read_errors(path):
        for entry in journals.read_task_events(path, arguments.task, arguments.since, progress):
            replay.take(entry.event)
    if not replay.attempts:
        journals.report_unreadable(progress)
        raise UsageError(journals.describe_empty(arguments.task, arguments.since))
    groups = sorted(replay.groups.items(), key=_order)
    if arguments.format == "json":
        print(json.dumps(_value(replay, groups, progress), indent=2))
    else:
        _print(replay, groups)
    return max(journals.report_unreadable(progress), 1 if groups or replay.uncertain_attempts or replay.skipped else 0)


def _order(item: tuple[Group, Tally]) -> tuple[object, ...]:
    group, tally = item
    return list(_HEADINGS).index(group.effect), -tally.counts.total(), group.place, group.task, group.was, group.now


def _value(replay: Replay, groups: list[tuple[Group, Tally]], progress: Progress) -> dict[str, Any]:
    return {
        "revision": replay.policy.revision,
        "attempts": replay.attempts,
        "unchanged": replay.unchanged + replay.fixed.total(),
        "settled": replay.settled,
        "changes": [
            {
                "effect": group.effect.value,
                "place": group.place,
                "task": group.task,
                "was": _said_value(group.was),
                "now": _said_value(group.now),
                "attempts": {KIND_WORDS[kind][1]: count for kind, count in tally.counts.items()},
                "examples": list(tally.examples),
            }
            for group, tally in groups
        ],
        "decided_before_rules": dict(replay.fixed),
        "not_replayed": dict(replay.skipped),
        "uncertain": dict(replay.uncertain),
        "uncertain_attempts": replay.uncertain_attempts,
        "unreadable": {"lines": progress.malformed, "unfinished": progress.torn},
    }


def _said_value(said: ReplayedDecision) -> dict[str, Any]:
    reason = said.reason.value if said.reason is not None else None
    return {"fate": said.fate.value, "reason": reason, "rules": list(said.rules)}


def _print(replay: Replay, groups: list[tuple[Group, Tally]]) -> None:
    for effect, heading in _HEADINGS.items():
        here = [(group, tally) for group, tally in groups if group.effect == effect]
        if here:
            print(heading)
        for group, tally in here:
            print(f"  {_line(group, tally)}")
    print(f"{count_of(replay.attempts, 'attempt')}: {_result(replay)}")
    if replay.settled:
        print(f"{count_of(replay.settled, 'attempt')} that only audit mode allowed would be allowed by a rule")
    for word, counter in (("not decided again", replay.skipped), ("uncertain", replay.uncertain)):
        for why, count in counter.most_common():
            print(f"{word}: {count_of(count, 'attempt')}, {why}")


def _result(replay: Replay) -> str:
    """Say how many attempts would be decided otherwise; nothing would only where that is certain of all."""
    unknown = replay.uncertain_attempts + replay.skipped.total()
    if not unknown:
        return f"{replay.changes or 'nothing'} would change"
    return f"{replay.changes or 'none'} would change for certain, and of {unknown} the journal doesn't record enough"


def _line(group: Group, tally: Tally) -> str:
    counts = ", ".join(f"{count} {KIND_WORDS[kind][count != 1]}" for kind, count in sorted(tally.counts.items()))
    task = f" of `{visible(group.task)}`" if group.task else ""
    examples = f" ({', '.join(visible(example) for example in tally.examples)})" if tally.examples else ""
    return f"{visible(group.place)}{task}, {counts}: was {_said(group.was)}, would be {_said(group.now)}{examples}"


def _said(said: ReplayedDecision) -> str:
    shown = [f"`{visible(rule)}`" for rule in said.rules[:3]]
    by = f" by {', '.join(shown)}" if shown else ""
    return f"{_WORDS[said.fate]}{by}" + ("" if by and said.reason == "rule" else f" ({said.reason or 'unknown'})")
