"""Lint of rules: finds what rules mean together that an admin may not have meant. A module for each family.

It reads the compiled policy, never text, so that a finding is about what a rule does and not how it is written. It
never affects a verdict: `Policy.decide` does not use it. The run time is nearly linear in the number of rules.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from rules.lint.findings import Finding
from rules.loading.load import Loaded

if TYPE_CHECKING:
    from datetime import date


class LintContext(NamedTuple):
    """Facts about the host that lint needs, because rules do no I/O of their own.

    The day (UTC), whether the host has `identities.yaml`, and whether it runs or obeys all of a path as files write it.
    """

    today: "date"
    identities: bool = False
    is_obeyed: Callable[[str], bool] = lambda _path: False


def lint(loaded: Loaded, context: LintContext) -> list[Finding]:
    """Return all findings about loaded files, in the order of files and lines.

    Rules of presets have findings only for ways around them, at the `include`: an admin can't edit their text.
    """
    shown = (place.file if place.via is None else place.via.file for place in loaded.places.values())
    order = {file: number for number, file in enumerate(dict.fromkeys(shown))}
    found = dict.fromkeys(_find_all(loaded, context))
    return sorted(
        found, key=lambda f: (order.get(f.file, len(order)), f.file, f.line, f.column, f.check.code, f.message)
    )


def _find_all(loaded: Loaded, context: LintContext) -> Iterator[Finding]:
    from rules.lint.findings import Reporter
    from rules.lint.rule_pairs import check_splicing, find_idle_rules, find_ways_around
    from rules.lint.single_rules import (
        check_credentials,
        check_exceptions,
        check_secrets,
        check_taint_and_asks,
        check_upkeep,
        check_width,
    )

    reporter = Reporter(loaded)
    policy = loaded.policy
    own = [rule for rule in policy.rules if not reporter.is_shipped(rule.id)]
    yield from find_idle_rules(policy, own, reporter)
    yield from check_exceptions(own, reporter)
    yield from check_credentials(policy, own, reporter)
    yield from check_secrets(policy, reporter)
    yield from check_taint_and_asks(policy, own, reporter)
    yield from check_width(own, reporter)
    yield from check_splicing(policy, own, reporter, context.today)
    yield from find_ways_around(policy, reporter, context.today)
    yield from check_upkeep(policy, own, reporter, context)
