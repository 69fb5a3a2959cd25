"""`exeat explain`: what the rules decide about one attempt, and why."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.cli.words import day
from enforcer.system.errors import ExeatError

if TYPE_CHECKING:
    from rules.loading.cases import Question


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat explain` takes."""
    parser.add_argument(
        "--rules",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a rule file; several are one policy (by default ~/.config/exeat/rules.yaml)",
    )
    parser.add_argument(
        "attempt",
        nargs="*",
        metavar="ATTEMPT",
        help="`https://host/path`, `PUT https://host/path`, `host:port`, `tcp host:port`, `udp host:port`, "
        "`git push URL REF`, `git fetch URL`, `dns TYPE NAME` or `run PROGRAM WORDS`; quotes may be left out; "
        "or a client's command, as in 'curl -X POST https://host/path'",
    )
    parser.add_argument(
        "--suggest", metavar="EVENT", help="print the rule that would have allowed what this event blocked, and try it"
    )
    parser.add_argument(
        "--journal", type=Path, metavar="DIR", help="--suggest: the journal (default: where `run` keeps it)"
    )
    parser.add_argument("--task", default="", metavar="NAME", help="the task that tries it, for rules with `for`")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="a label of the task")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="a header of the request")
    parser.add_argument(
        "--body", action="store_true", help="the request has a body; POST, PUT and PATCH have one anyway"
    )
    parser.add_argument(
        "--credential", metavar="ID", help="the request's one credential is this secret's placeholder, in its place"
    )
    parser.add_argument(
        "--tainted", action="store_true", help="the task has read what nobody vouches for, for `when: tainted`"
    )
    parser.add_argument(
        "--at", type=day, metavar="DATE", help="the day on which it is tried, as in 2027-01-31 (default: today, UTC)"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="for people, or for programs")


def run(arguments: argparse.Namespace, system: Path | None = None) -> int:
    """Explain the attempt, under root's rules too. 0 whatever the verdict, 2 when it or the rules can't be read.

    `system`: where root's rules lie; for tests, not for users.
    """
    from enforcer.policy.rules_in_force import SYSTEM, load, rule_files
    from rules.explain.explanation import explain
    from rules.problems import RuleFileError

    if arguments.suggest is not None:
        from enforcer.cli import explain_suggest

        return explain_suggest.run(arguments, system or SYSTEM)
    try:
        question = _question(arguments)
        policy = load(list(map(Path, rule_files(arguments.rules))), system or SYSTEM).policy
        _check_secret(question, [secret.id for secret in policy.secrets])
        explanation = explain(policy, question)
    except RuleFileError as error:
        print(error, file=sys.stderr)
        return 2
    except (ExeatError, ValueError) as error:
        print(f"exeat: {error}", file=sys.stderr)
        return 2
    if arguments.format == "json":
        print(json.dumps(explanation.value(), indent=2))
    else:
        print("\n".join(explanation.lines()))
    return 0


def _question(arguments: argparse.Namespace) -> "Question":
    """Read what is asked about. Raises ValueError and UsageError."""
    from enforcer.cli.client_words import attempt_of
    from enforcer.policy.run_request import task_labels
    from rules.loading.cases import parse_attempt

    if not arguments.attempt:
        raise ValueError("what is to be explained? write an attempt, or `--suggest EVENT` with an id of `exeat log`")
    text = " ".join(word for given in arguments.attempt for word in given.split())
    asked = parse_attempt(attempt_of(text))
    request = asked.request
    if request is None and (arguments.header or arguments.body or arguments.credential):
        raise ValueError("`--header`, `--body` and `--credential` belong to a request, and this attempt is none")
    if request is not None:
        headers = [_header(word) for word in arguments.header]
        body = request.body or arguments.body
        credential = arguments.credential or request.credential
        request = request._replace(headers=(*request.headers, *headers), body=body, credential=credential)
    return asked._replace(
        request=request,
        task=arguments.task,
        labels=task_labels(arguments.label),
        at=arguments.at or datetime.now(UTC).date(),
        tainted=arguments.tainted,
    )


def _check_secret(question: "Question", known: list[str]) -> None:
    """Raise ValueError for a secret that there isn't: no rule would match, whatever was meant."""
    from rules.loading.secret_profiles import unknown

    credential = question.request and question.request.credential
    if credential and credential not in known:
        raise ValueError(unknown(credential, known))


def _header(word: str) -> tuple[str, str]:
    from rules.loading.values import header_name

    name, colon, value = word.partition(":")
    if not colon:
        raise ValueError(f"--header: `{word}` is no header; write NAME:VALUE, as in `--header accept:text/html`")
    return header_name(name.strip()), value.strip()
