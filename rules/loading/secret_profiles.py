"""The secrets of all files together: each known by one id, and none named by a rule or a test that nobody has.

A rule about a secret that isn't there would match nothing: one that holds back would hold nothing back.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from rules.problems import Problem, did_you_mean, quoted

if TYPE_CHECKING:
    from rules.loading.cases import Case
    from rules.loading.document import Node, Place
    from rules.rule import Rule
    from rules.secrets import Secret

    type Said = tuple[str, tuple[tuple[Secret, Node], ...], tuple[Case, ...]]  # of a file, as the user named it

_MOST: Final = 64


def gather(
    files: "Iterable[Said]", rules: "Iterable[Rule]", places: "Mapping[str, Place]", problems: list[Problem]
) -> "list[Secret]":
    """Return the secrets of all files; adds what is wrong with them, and with who names them, to `problems`."""
    files, rules = list(files), list(rules)
    found: list[Secret] = []
    for shown, said, _ in files:
        for secret, node in said:
            if any(secret.id == other.id for other in found):
                problems.append(Problem(shown, node.line, node.column, f"there is a secret `{secret.id}` already"))
            taken = {variable for other in found for variable in other.variables}
            if shared := next((variable for variable in secret.variables if variable in taken), None):
                message = f"another secret has its placeholder in `{shared}` already"
                problems.append(Problem(shown, node.line, node.column, message))
            found.append(secret)
    if len(found) > _MOST:
        problems.append(Problem(files[0][0], 1, 1, f"more than {_MOST} secrets: give tasks what they need"))
    known = [secret.id for secret in found]
    for rule in rules:
        named = (rule.credential, *(exemption.credential for exemption in rule.excepts))
        for ident in {ident for ident in named if ident is not None and ident not in known}:
            place = places[rule.id]
            problems.append(Problem(place.file, place.node.line, place.node.column, unknown(ident, known)))
    problems += _carried_by_none(found, rules, places)
    for case in (case for _, _, tests in files for case in tests):
        asked = case.question.request.credential if case.question.request else None
        if asked and asked not in known:
            problems.append(Problem(case.file, case.line, case.column, unknown(asked, known)))
    return found


def _carried_by_none(
    found: "Iterable[Secret]", rules: "Iterable[Rule]", places: "Mapping[str, Place]"
) -> "Iterator[Problem]":
    """Tell of rules about the credential of a request that name what no request carries."""
    shown = {secret.id for secret in found if secret.is_certificate}
    for rule in rules:
        if rule.credential in shown or any(exemption.credential in shown for exemption in rule.excepts):
            place = places[rule.id]
            message = "`credential` names a client certificate, which no request carries: the rule would match none"
            yield Problem(place.file, place.node.line, place.node.column, message)


def unknown(ident: str, known: Sequence[str]) -> str:
    """Say that nobody knows of a secret that is named."""
    return f"there is no secret {quoted(ident)}{did_you_mean(ident, known) or ': `secrets` say what there is'}"
