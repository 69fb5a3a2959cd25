"""`exeat explain`: the decision on one attempt and its reasons; `--suggest` prints the rule that would allow it."""

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from enforcer.cli import journals
from enforcer.cli.check import check_file
from enforcer.cli.client_commands import read_attempt
from enforcer.cli.output import FailedError, parse_day
from enforcer.cli.parsing import FORMAT, argument
from enforcer.policy.rule_files import SYSTEM, load, parse, rule_files
from enforcer.policy.run_request import task_labels
from enforcer.system.errors import HostError, UsageError
from enforcer.system.state import journal_directory
from proxy.telemetry.descriptions import describe
from proxy.telemetry.events import Event, Kind
from proxy.telemetry.replay.learner import Learner, without_secrets
from proxy.telemetry.replay.past_attempts import PastAttempt, rebuild_attempt
from proxy.telemetry.views.causality import find
from proxy.telemetry.visible import visible
from rules.attempt import Caller
from rules.decision import Decision
from rules.explain.explanation import explain
from rules.explain.reasons import describe_reason
from rules.learning.writing import write_rule_file
from rules.loading.cases import AttemptText, parse_attempt
from rules.loading.fields import parse_header_name
from rules.loading.secret_schema import unknown_secret
from rules.matching.policy import Policy
from rules.verdicts import Outcome, Reason, Verdict

_NAME: Final = "suggested"
# Blocked for what requests carry: the journal has the reason and not the request
_BY_CONTENT: Final = frozenset({
    Reason.SECRET_MISUSE, Reason.SECRET_NOT_SENT, Reason.CREDENTIAL_MISMATCH, Reason.LEAK, Reason.LIMIT_EXCEEDED,
})  # fmt: skip
_NOT_BY_A_RULE: Final = frozenset({Reason.ECH, Reason.LAYER, Reason.EXPIRED, Reason.TAINTED})
_ASKED: Final = frozenset({
    Reason.APPROVAL_UNAVAILABLE, Reason.APPROVAL_DENIED, Reason.APPROVAL_TIMEOUT, Reason.APPROVAL_FLOOD,
})  # fmt: skip


ARGUMENTS: Final = (
    argument("--rules", "FILE...", "rule file; several form one policy (default: ~/.config/exeat/rules.yaml)"),
    argument(
        "attempt",
        "ATTEMPT",
        "`https://host/path`, `PUT https://host/path`, `host:port`, `tcp host:port`, `udp host:port`, "
        "`git push URL REF`, `git fetch URL`, `dns TYPE NAME` or `run PROGRAM WORDS`; quotes may be left out; "
        "or a client's command, as in 'curl -X POST https://host/path'",
        nargs="*",
    ),
    argument("--suggest", "EVENT", "print and test the rule that would have allowed what this event blocked"),
    argument("--journal", "DIR", "--suggest: journal to read (default: $XDG_STATE_HOME/exeat/journal)"),
    argument("--task", "NAME", "task that makes the attempt, for rules with `for`", default=""),
    argument("--label", "NAME=VALUE...", "label of the task, for rules with `for`"),
    argument("--header", "NAME:VALUE...", "header of the request"),
    argument("--body", "", "the request has a body; POST, PUT and PATCH always have one"),
    argument("--credential", "ID", "the request carries the placeholder of this secret and no other credential"),
    argument("--tainted", "", "the task is tainted, for rules with `when: tainted`"),
    argument("--at", "DATE", "day of the attempt, as in 2027-01-31 (default: today in UTC)", type=parse_day),
    FORMAT,
)


def run(arguments: argparse.Namespace, system: Path | None = None) -> int:
    """Explain the attempt, under root's rules too. 0 whatever the verdict, 2 when it or the rules can't be read.

    `system`: where root's rules lie; for tests, not for users.
    """
    if arguments.suggest is not None:
        return run_suggest(arguments, system or SYSTEM)
    try:
        question = _question(arguments)
        policy = load(list(map(Path, rule_files(arguments.rules))), system or SYSTEM).policy
        _check_secret(question, [secret.id for secret in policy.secrets])
        explanation = explain(policy, question)
    except (HostError, ValueError) as error:
        raise UsageError(str(error)) from error
    if arguments.format == "json":
        print(json.dumps(explanation.value(), indent=2))
    else:
        print("\n".join(explanation.lines()))
    return 0


def _question(arguments: argparse.Namespace) -> AttemptText:
    """Read what is asked about. Raises ValueError and UsageError."""
    if not arguments.attempt:
        raise ValueError("no attempt to explain: write one, or `--suggest EVENT` with an id of `exeat log`")
    text = " ".join(word for given in arguments.attempt for word in given.split())
    asked = parse_attempt(read_attempt(text))
    request = asked.request
    if request is None and (arguments.header or arguments.body or arguments.credential):
        raise ValueError(
            "`--header`, `--body` and `--credential` need a request, such as `https://host/path`, as the attempt"
        )
    if request is not None:
        headers = [_header(word) for word in arguments.header]
        body = request.body or arguments.body
        credential = arguments.credential or request.credential
        request = request._replace(headers=(*request.headers, *headers), body=body, credential=credential)
    return asked._replace(
        request=request,
        caller=Caller(
            arguments.task,
            task_labels(arguments.label),
            arguments.at or datetime.now(UTC).date(),
            arguments.tainted,
        ),
    )


def _check_secret(question: AttemptText, known: list[str]) -> None:
    """Raise ValueError for a secret that there isn't: no rule would match, whatever was meant."""
    credential = question.request and question.request.credential
    if credential and credential not in known:
        raise ValueError(unknown_secret(credential, known))


def _header(word: str) -> tuple[str, str]:
    name, colon, value = word.partition(":")
    if not colon:
        raise ValueError(f"--header: `{word}` is not a header: write NAME:VALUE, as in `--header accept:text/html`")
    return parse_header_name(name.strip()), value.strip()


class NoRuleError(Exception):
    """Why no rule is suggested, and what helps instead."""


def run_suggest(arguments: argparse.Namespace, system: Path) -> int:
    """Print a rule file. 0 when it lets out what was blocked, 1 when none is enough or there is none, 2 for misuse."""
    try:
        if arguments.attempt:
            raise UsageError("`--suggest` takes the id of an event and no attempt")
        event = _event(arguments.journal or journal_directory(), arguments.suggest)
        text = suggest_rule(event)
        findings, decision = _tried(text, event, arguments, system)
    except NoRuleError as none:
        raise FailedError(f"no rule would allow this: {none}", 1) from none
    except OSError as error:
        raise UsageError(f"cannot read `{error.filename}`: {error.strerror}") from error
    enough = decision is None or decision.may_send_now
    if arguments.format == "json":
        print(json.dumps({"event": event.id, "rules": text, "findings": findings, "allowed": enough}, indent=2))
    else:
        print(text, end="")
    for finding in findings:
        print(f"exeat: check: {finding}", file=sys.stderr)
    if decision is not None and not enough:
        by = f" by {', '.join(f'`{rule}`' for rule in decision.rules)}" if decision.rules else ""
        print(
            f"exeat: it is not enough: with it, this would be {decision.verdict}{by} ({decision.reason})",
            file=sys.stderr,
        )
    return 0 if enough else 1


def suggest_rule(event: Event) -> str:
    """Write a rule file that allows what an event says was blocked, and no more. Raises NoRule."""
    attempt = _to_be_allowed(event)
    learner = Learner()
    learner.suggest(attempt)
    drafted = learner.result()
    if not drafted.drafts:
        raise NoRuleError(next((each.why for each in drafted.left_out), "no rule can say it"))
    head = [
        f"Would have let out what was blocked ({event.reason}): {without_secrets(visible(describe(event)))}",
        f"Event {event.id}. Read it before you use it: put the rule into a rule file of yours.",
    ]
    if event.kind is not Kind.REQUEST_DECIDED:
        head.append("Nothing more was seen: this is as narrow as that allows. Narrow it where you know what was meant.")
        if attempt.address is None and event.destination is not None and event.destination.name:
            head.append("Which address the name has was not recorded: one that is not public needs `resolves_to`.")
    # A name of its own: a second suggestion is loaded beside the first
    return write_rule_file(drafted, head, f"{_NAME}-{event.id[-12:]}", without_secrets)


def _said(event: Event) -> str:
    """Return what the event itself says of its reason, which may stand for many; fit for a terminal."""
    return without_secrets(visible(event.detail or ""))


def _to_be_allowed(event: Event) -> PastAttempt:
    """Return the attempt of an event, if a rule can allow it. Raises NoRule."""
    if event.reason in _BY_CONTENT and event.outcome in {Outcome.BLOCKED, None}:  # None: an event of tampering
        raise NoRuleError(f"{describe_reason(event.reason, None)} (`{event.reason}`)")
    attempt = rebuild_attempt(event, None)
    if attempt is None:
        raise NoRuleError("it is about no attempt; `exeat log --verdict blocked` shows those that were blocked")
    if event.outcome is not Outcome.BLOCKED:
        raise NoRuleError("it was not blocked")
    if event.reason is not None and (attempt.fixed or event.reason in _NOT_BY_A_RULE):
        said = _said(event) if event.reason is Reason.AMBIGUOUS_REQUEST else ""
        raise NoRuleError(said or describe_reason(event.reason, None))
    if attempt.problem:
        no_request = event.reason is Reason.PROTOCOL_MISMATCH
        helps = "; ".join(filter(None, (_said(event), describe_reason(Reason.PROTOCOL_MISMATCH, None))))
        raise NoRuleError(helps if no_request else attempt.problem)
    if event.reason is Reason.RULE:
        raise NoRuleError(
            f"{', '.join(f'`{rule}`' for rule in event.rules)} denies it; put it into that rule's `except`"
        )
    if event.reason in _ASKED:
        approval = "ID" if event.approval is None else event.approval.id
        raise NoRuleError(f"people are asked about it: `exeat approve {approval} --as-rule` writes their answer down")
    return attempt


def _event(directory: Path, given: str) -> Event:
    journals.require_journal(directory)
    entry = journals.find_event(find, directory, given, "exeat log --verdict blocked")
    if entry is None:
        raise UsageError("there is no such event")
    return entry.event


def _tried(text: str, event: Event, arguments: argparse.Namespace, system: Path) -> tuple[list[str], Decision | None]:
    """Check the rules as `exeat check` does, and decide the attempt by them beside those in force."""
    with tempfile.TemporaryDirectory(prefix="exeat-suggest-") as directory:
        file = Path(directory) / f"{_NAME}.yaml"
        file.write_text(text, encoding="ascii")
        findings = [
            str(finding).replace(str(file), file.name) for finding in check_file(file, datetime.now(UTC).date())
        ]
        try:
            files = list(map(Path, rule_files(arguments.rules)))
        except UsageError:
            files = []  # none is named, and there is no default: root's alone are in force
        return findings, _decided(parse([*files, file], system).policy, event)


def _decided(policy: Policy, event: Event) -> Decision | None:
    attempt = rebuild_attempt(event, datetime.now(UTC).date())
    if attempt is None:
        return None
    if attempt.attempt is None:
        caller = Caller(event.task.name, event.task.labels)
        return None if attempt.lookup is None else policy.decide_name(attempt.lookup, caller)
    decision = policy.decide(attempt.attempt)
    if decision.may_send_now and attempt.address is not None:
        reason = policy.check_address(attempt.attempt, attempt.address)
        return (
            decision
            if reason is None
            else decision._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason)
        )
    return decision
