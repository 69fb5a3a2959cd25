"""Puts root's current rules over a policy whose own files can't be read again.

Whoever keeps a task's rule files could otherwise keep out what root writes while it runs: a line that is broken, a
test that fails, a setting that a layer's contradicts, and nothing would be read. So root's files are then read alone,
and put over the rules in force. What comes of it is at least as strict as what all files together would say, were they
right:

    rules of root's files as they were     let nobody out any more, unless root's files still have them; those that hold
                                           back and are gone vote as a layer, until everything can be read
    what root's files say now              votes, as ever; what holds back is in the pool, what lets out is not
    settings                               the strictest
"""

from collections.abc import Iterable
from typing import Final

from rules.matching.layers import Layer, strictest_value
from rules.matching.policy import Policy
from rules.matching.revision import digest_of
from rules.settings import Settings
from rules.verdicts import LayerKind, Verdict

GONE: Final = "as-it-was"  # the layer of what root's files no longer say
_TIGHTENED: Final = ("mode", "tls", "dns", "on_journal_failure", "idle_timeout")


def put_over(policy: Policy, roots: Policy, unread: Iterable[str]) -> Policy:
    """Put root's current files over a policy. `unread`: why its other files can't be read."""
    before = [layer for layer in policy.layers if layer.roots]
    now = {digest_of(rule): rule for rule in roots.rules}
    were = {rule for layer in before for rule in layer.rules}
    kept = [rule for rule in policy.rules if rule not in were or digest_of(rule) in now]
    known = {digest_of(rule) for rule in kept}
    added = [rule for digest, rule in now.items() if digest not in known and not rule.allows]
    gone = tuple(rule for rule in were if digest_of(rule) not in now and rule.action is not Verdict.ALLOW)
    layers = [layer for layer in policy.layers if not layer.roots]
    if gone:
        layers.append(Layer(LayerKind.MANDATORY, GONE, gone))
    changed = {command.cite for command in roots.commands}
    return Policy(
        [*kept, *added],
        _settings(policy, before, roots),
        dict.fromkeys((*policy.sources, *roots.sources)),
        layers=[*layers, *roots.layers],
        authorities={**policy.authorities, **roots.authorities},
        secrets=policy.secrets,
        box=policy.box,
        floor=policy.floor,
        commands=[*(command for command in policy.commands if command.cite not in changed), *roots.commands],
        unread=unread,
    )


def _settings(policy: Policy, before: Iterable[Layer], roots: Policy) -> Settings:
    """Tighten what a layer of root's says now, or said; the rest stays."""
    said = {key for layer in roots.layers for key in layer.says}
    was_said = {key for layer in before for key in layer.says}
    found = policy.settings
    for key in _TIGHTENED:
        if key in said or key in was_said:
            other = roots.settings if key in said else Settings()
            value = strictest_value(key, (getattr(found, key), getattr(other, key)))
            found = found._replace(**{key: value})
    return found
