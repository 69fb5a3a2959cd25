"""`exeat learn`: writes the smallest rule file that allows what a journal records as allowed."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from enforcer.cli import journals
from enforcer.cli.parsing import FORCE, argument
from enforcer.system.errors import UsageError
from proxy.telemetry.journal.query import Progress
from proxy.telemetry.replay.learner import Learner, without_secrets
from rules.explain.reasons import describe_reason
from rules.learning.drafts import LearnedRules
from rules.learning.generalize import GitDraft, write_pattern
from rules.learning.writing import NOT_TAKEN_OVER, add_notes, enforce_settings, write_rule_file
from rules.loading.fields import make_slug
from rules.loading.load import read
from rules.matching.policy import Policy
from rules.sandbox import NO_SANDBOX_SETTINGS
from rules.verdicts import Reason

_MOST_SOURCES = 5
_MOST_REFUSED = 20


ARGUMENTS: Final = (
    *journals.ARGUMENTS,
    argument("--rules", "FILE...", "rules that were in force; their `settings`, except `mode: audit`, are copied"),
    argument("-o --output", "FILE", "file to write (default: standard output)"),
    FORCE,
    argument("--format", ("yaml", "json"), "output format; yaml is a rule file", default="yaml"),
)


def run(arguments: argparse.Namespace) -> int:
    """Learn. 0 when all that was let out is allowed by the file, 1 when some is not or may not be, 2 for misuse."""
    output = arguments.output
    if output is not None and output.exists() and not arguments.force:
        raise UsageError(f"`{output}` exists already: name another file, or overwrite it with `--force`")
    policy = read(arguments.rules).policy if arguments.rules else None
    path = journals.find_journal(arguments.journal)
    learner, progress = Learner(), Progress()
    with journals.report_read_errors(path):
        for entry in journals.read_task_events(path, arguments.task, arguments.since, progress):
            learner.take(entry.event)
    drafted, looser = add_notes(learner.result(), {} if policy is None else {rule.id: rule for rule in policy.rules})
    if not learner.attempts and not drafted.left_out:
        journals.report_unreadable(progress)
        raise UsageError(journals.describe_empty(arguments.task, arguments.since, "no allowed attempt"))
    text = (
        _json(drafted, learner, policy)
        if arguments.format == "json"
        else _yaml(drafted, learner, path, arguments, policy)
    )
    _write(text, output, force=arguments.force)
    left_out = _warn(learner, drafted, f"`{output}`" if output else "what was written", looser)
    return max(journals.report_unreadable(progress), 1 if left_out or learner.incomplete or looser else 0)


def _warn(learner: Learner, drafted: LearnedRules, shown: str, looser: int) -> int:
    """Say what the file doesn't allow, or may not, and that it may allow more; return how many attempts it doesn't."""
    if learner.not_public:
        said = "what audit mode refused for its address is not learned"
        print(f"exeat: {said}; the beginning of {shown} says what lets it out", file=sys.stderr)
    left_out = sum(each.times for each in drafted.left_out)
    if left_out:
        some = "1 attempt that was let out is" if left_out == 1 else f"{left_out} attempts that were let out are"
        print(f"exeat: {some} not learned; the end of {shown} says why", file=sys.stderr)
    if learner.incomplete:
        some = "1 attempt" if learner.incomplete == 1 else f"{learner.incomplete} attempts"
        print(f"exeat: {some} may not pass by what was learned: see `NOT RECORDED` in {shown}", file=sys.stderr)
    if looser:
        some = "1 rule lets" if looser == 1 else f"{looser} rules let"
        print(f"exeat: {some} out more than those in force did: see `{NOT_TAKEN_OVER}` in {shown}", file=sys.stderr)
    return left_out


def _yaml(
    drafted: LearnedRules, learner: Learner, path: Path, arguments: argparse.Namespace, policy: Policy | None
) -> str:
    output: Path | None = arguments.output
    attempts = f"{learner.attempts} attempt{'s' * (learner.attempts != 1)}"
    head = (
        f"Learned by `exeat learn` from {path}: {attempts} let out.",
        "Read each rule before you use it: it allows what was seen, whether that was good or not.",
        *_not_here(learner, policy),
        *_not_public(learner),
    )
    name = make_slug(output.stem) if output is not None else "learned"
    return write_rule_file(
        drafted, head, name, without_secrets, enforce_settings(policy.settings) if policy is not None else None
    )


def _not_here(learner: Learner, policy: Policy | None) -> list[str]:
    """Say what the rules that were in force had beside rules, and this file has not."""
    if policy is not None:
        which = ", ".join(f"`{secret.id}`" for secret in policy.secrets)
        said = [f"The `secrets` of those rules are not in here, and belong beside these: {which}."] if which else []
        others = [
            key
            for key, value in (("commands", policy.commands), ("sandbox", policy.box != NO_SANDBOX_SETTINGS))
            if value
        ]
        return [*said, *(f"Their `{key}` is not in here, and belongs beside these." for key in others)]
    named = [without_secrets(source) for source in learner.sources][:_MOST_SOURCES]
    more = len(learner.sources) - len(named)
    read = f", which were read from {', '.join(named)}{f' and {more} more' if more else ''}" if named else ""
    return [
        "The journal doesn't say which `settings`, `commands` and `sandbox` were in force: copy those of the rules",
        f"that were{read}, but for `mode: audit`; or name them with `--rules FILE`. Then each rule also says what",
        "those looked at that no journal tells (`for`, `credential`, `http.query`, `limits` ...).",
    ]


def _not_public(learner: Learner) -> Iterator[str]:
    """Say what audit mode didn't let out, because its address is not public, and what lets it out."""
    if learner.not_public:
        yield "Refused in audit mode, too, and so not learned:"
    for target, _ in learner.not_public.most_common(_MOST_REFUSED):
        yield f"  {without_secrets(str(target))}: {describe_reason(Reason.NON_PUBLIC_ADDRESS, target)}"
    if len(learner.not_public) > _MOST_REFUSED:
        yield f"  and {len(learner.not_public) - _MOST_REFUSED} more"


def _json(drafted: LearnedRules, learner: Learner, policy: Policy | None) -> str:
    def value(of: Any) -> dict[str, Any]:
        place, evidence = of.place, of.evidence
        return {
            "id": of.id,
            "to": str(place.target),
            "ports": f"{place.port}/{place.protocol.value}",
            "methods": of.methods,
            "paths": None if of.paths is None else [write_pattern(each) for each in of.paths],
            "body": of.body,
            "websocket": of.websocket,
            "git": None if of.git is None else _git_value(of.git),
            "tls": "splice" if of.splice else None,
            "resolves_to": list(map(str, of.resolves_to)),
            "dns_types": of.dns_types,
            "action": of.action.value,
            "seen": evidence.times,
            "first": evidence.first,
            "last": evidence.last,
            "tasks": [without_secrets(task) for task in evidence.tasks],
            "notes": of.notes,
            "not_recorded": list(evidence.unrecorded),
        }

    left_out = [
        {"what": without_secrets(each.what), "attempts": each.times, "why": each.why} for each in drafted.left_out
    ]
    told = {
        "settings": None if policy is None else enforce_settings(policy.settings),
        "sources": list(map(without_secrets, learner.sources)),
        "rules": list(map(value, drafted.drafts)),
        "not_learned": left_out,
    }
    return json.dumps(told, indent=2) + "\n"


def _git_value(git: GitDraft) -> dict[str, Any]:
    if git.change is None:
        return {"repos": git.repos, "fetch": True}
    return {"repos": git.repos, "push": git.refs, "changes": [git.change.value]}


def _write(text: str, output: Path | None, *, force: bool) -> None:
    """Write it all or nothing. Raises UsageError."""
    if output is None:
        sys.stdout.write(text)
        return
    try:
        _save(text, output, force=force)
    except FileExistsError as error:
        said = f"`{output}` exists already: name another file, or overwrite it with `--force`"
        raise UsageError(said) from error
    except OSError as error:
        raise UsageError(f"cannot write `{output}`: {error.strerror}") from error


def _save(text: str, output: Path, *, force: bool) -> None:
    """Put a file in its place whole; never through a link that somebody put there."""
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        if force:
            os.replace(beside, output)
        else:
            os.link(beside, output)  # unlike a rename, it never overwrites
    finally:
        beside.unlink(missing_ok=True)
