"""Ways around what a rule holds back: the same thing, to the same place, in a form that the rule doesn't see.

Each is tried on the policy itself, so that a way that another rule closes is not told.
"""

from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import Protocol, Request
from rules.lint.codes import AROUND_API, AROUND_LFS, AROUND_RAW
from rules.lint.standing import WORD, Asker, name_of, path_of
from rules.lint.targets import Targets
from rules.names import HostName, InvalidName
from rules.ports import UNSEEN
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from rules.lint.finding import Finding, Reporter
    from rules.matching.policy import Policy
    from rules.patterns import NamePattern
    from rules.ports import Ports
    from rules.rule import Rule

_MOST_NAMED: Final = 3
_MOST_TRIED: Final = 8  # names and repositories of one rule

# What writes to a repository and is no push: host, method, path. From the REST documentation of GitHub (its cloud and
# its Enterprise Server), GitLab, Gitea with its forks, and Bitbucket Cloud.
_WRITES: Final = (
    ("api.{host}", "PUT", "/repos/{repo}/contents/{word}"),
    ("api.{host}", "POST", "/repos/{repo}/git/refs"),
    ("api.{host}", "PATCH", "/repos/{repo}/git/refs/heads/{word}"),
    ("api.{host}", "PUT", "/repos/{repo}/pulls/1/merge"),
    ("api.{host}", "POST", "/graphql"),
    ("api.{host}", "POST", "/2.0/repositories/{repo}/src"),
    ("{host}", "PUT", "/api/v3/repos/{repo}/contents/{word}"),
    ("{host}", "POST", "/api/graphql"),
    ("{host}", "POST", "/api/v4/projects/1/repository/commits"),
    ("{host}", "PUT", "/api/v4/projects/1/merge_requests/1/merge"),
    ("{host}", "POST", "/api/v1/repos/{repo}/contents/{word}"),
)
_LFS: Final = (("{host}", "POST", "/{repo}.git/info/lfs/objects/batch"),)  # the LFS batch API


class _Way(NamedTuple):
    """A way out past a rule, as a person would write it, and the rules that let it out; none: audit mode does."""

    attempt: str
    by: tuple[str, ...]


def find(policy: "Policy", reporter: "Reporter", today: "date") -> "Iterator[Finding]":
    """Tell of the ways around rules that ask or deny."""
    ask = Asker(policy, today)
    found = [(AROUND_RAW, rule, "id", ways) for rule, ways in _raw_ways(policy, ask).items()]
    for rule in policy.rules:
        if rule.git is not None and rule.git.push and not rule.lets_out:
            found.append((AROUND_API, rule, "git", list(_git_ways(ask, rule, _WRITES))))
            found.append((AROUND_LFS, rule, "git", list(_git_ways(ask, rule, _LFS))))
    for check, rule, at, ways in found:
        mine = [way for way in ways if not all(map(reporter.is_shipped, (rule.id, *way.by)))]
        if mine:
            others = dict.fromkeys(ident for way in mine for ident in way.by)
            message = f"`{rule.id}` ({rule.action}) doesn't see {_told(mine)}"
            yield reporter.about(check, rule, message, *others, at=at)


def _told(ways: "list[_Way]") -> str:
    """Tell the ways, those that the same rules let out together."""
    attempts: dict[tuple[str, ...], dict[str, None]] = {}
    for way in ways:
        attempts.setdefault(way.by, {})[way.attempt] = None
    told: list[str] = []
    for by, tried in islice(attempts.items(), _MOST_NAMED):
        named = ", ".join(f"`{attempt}`" for attempt in islice(tried, _MOST_NAMED))
        more = f" and {len(tried) - _MOST_NAMED} more" if len(tried) > _MOST_NAMED else ""
        rules = " and ".join(f"`{ident}`" for ident in by[:_MOST_NAMED]) or "audit mode"
        told.append(f"{named}{more}, which {rules} lets out")
    return "; ".join(told) + (
        f"; and what {len(attempts) - _MOST_NAMED} others let out" if len(attempts) > _MOST_NAMED else ""
    )


def _raw_ways(policy: "Policy", ask: Asker) -> "dict[Rule, list[_Way]]":
    """Pair what looks at requests, or asks, with what lets bytes out unread to the same name on another port.

    So does what looks for secrets, to keep them in.
    """
    unread = [rule for rule in policy.rules if rule.lets_out and _unread(rule)]
    holding = [rule for rule in policy.rules if _is_about_what_is_seen(rule)]
    found: dict[Rule, list[_Way]] = {}
    if unread and holding:
        for held, rule, name in (*_pairs(holding, unread), *((h, r, n) for r, h, n in _pairs(unread, holding))):
            found.setdefault(held, []).extend(_ways(ask, rule, name))
    return {held: ways for held, ways in found.items() if ways}


def _pairs(wide: "list[Rule]", narrow: "list[Rule]") -> "Iterator[tuple[Rule, Rule, NamePattern]]":
    """Pair rules about a name, or names, of another rule with that rule and those names."""
    over = Targets(wide)
    for rule in narrow:
        for name in rule.names[:_MOST_TRIED]:
            for other in dict.fromkeys(candidate for candidate, _ in over.over_name(name, rule)):
                yield other, rule, name


def _unread(rule: "Rule") -> "list[Ports]":
    ports = rule.ports or ()
    return [
        entry
        for entry in ports
        if entry.protocol in UNSEEN or (entry.protocol is Protocol.TLS and rule.splices(entry.low))
    ]


def _is_about_what_is_seen(rule: "Rule") -> bool:
    if rule.scan is not None and rule.scan.blocks:
        return bool(rule.names)
    if rule.lets_out or rule.default or not rule.names:
        return False
    return rule.looks_at_requests or rule.action is Verdict.ASK


def _ways(ask: Asker, rule: "Rule", pattern: "NamePattern") -> "Iterator[_Way]":
    """Try whether a rule really lets out unread where it says so."""
    name = name_of(pattern)
    for entry in _unread(rule) if name is not None else ():
        assert name is not None
        decision = ask.connection(rule, name, entry.low, entry.protocol)
        if decision.passes and not decision.inspect and rule.id in decision.rules:
            yield _Way(f"{entry.protocol} {pattern.text}:{entry.low}", (rule.id,))


def _git_ways(ask: Asker, rule: "Rule", requests: tuple[tuple[str, str, str], ...]) -> "Iterator[_Way]":
    assert rule.git is not None
    for pattern in rule.names[:_MOST_TRIED]:
        host = name_of(pattern)
        for repos in rule.git.repos[:_MOST_TRIED] if host is not None else ():
            filling = {"host": host, "repo": path_of(repos.parts), "word": WORD}
            for where, method, path in requests:
                try:
                    name = HostName(where.format(**filling))
                except InvalidName:
                    continue
                request = Request(method, path.format(**filling), body=True)
                decision = ask.request(rule, name, request)
                if decision.passes:
                    shown = f"{method} https://{name}{request.path}".replace(WORD, "*")
                    yield _Way(shown, decision.rules)
