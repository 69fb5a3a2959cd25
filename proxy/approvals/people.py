"""Who may approve what: people, groups, and programs that review (`approvers_file` reads them).

A person is one, by unix user or by token. Nobody approves their own task where a group is named, and a reviewing
program is never all of a quorum of more than one.
"""

import hashlib
import hmac
import pwd
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.approvals.model import Ballot, GrantTerms, Vote
from rules.problems import did_you_mean

if TYPE_CHECKING:
    from proxy.approvals.approval_request import ApprovalRequest, Kind, Rule
    from rules.values.patterns import Pattern

PENDING_PER_TASK: Final = 20
PENDING: Final = 1000
REVIEWER: Final = "reviewer "  # what a program's name begins with, where it is told


class Actor(NamedTuple):
    """Identity of a caller. `known`: whether it may approve anything."""

    name: str
    known: bool = False
    reviewer: bool = False


class Person(NamedTuple):
    """Person who may approve."""

    name: str
    user: str = ""  # of unix
    uid: int | None = None
    tokens: tuple[str, ...] = ()  # as `hashed` gives them
    oidc: str = ""  # subject, for the console


class Reviewer(NamedTuple):
    """Program that reviews approval requests."""

    name: str
    rules: "tuple[Pattern, ...]"
    kinds: "tuple[Kind, ...]" = ()  # none: any
    command: tuple[str, ...] = ()
    webhook: str = ""
    secret: "Secret | None" = None  # that a webhook's body is signed with
    timeout: float = 30.0  # seconds

    def reviews(self, rule: str) -> bool:
        """Whether its word counts for a rule."""
        return any(pattern.matches(rule) for pattern in self.rules)

    def asked(self, question: "ApprovalRequest") -> bool:
        """Whether it reviews a request: it must review every rule of the request."""
        ours = bool(question.rules) and all(self.reviews(asks.rule) for asks in question.rules)
        return ours and (not self.kinds or question.kind in self.kinds)


class Secret(NamedTuple):
    """Where a secret is: the name of a file, or of a variable of the registry's environment."""

    file: str = ""
    env: str = ""


class NotificationTarget(NamedTuple):
    """Receiver of notifications about approval requests."""

    webhook: str = ""
    shape: str = "generic"  # or `slack`
    secret: Secret | None = None
    command: tuple[str, ...] = ()


class PendingLimits(NamedTuple):
    """Limits on pending approval requests."""

    pending_per_task: int = PENDING_PER_TASK
    pending: int = PENDING


class StoreLocation(NamedTuple):
    """Location of the approval store. `url` empty: a file beside the registry's socket."""

    url: str = ""
    password: str = ""  # the name of a file with nothing else in it
    ca: str = ""  # the name of a file of certificates to trust, instead of the host's own


def user_name(uid: int) -> str:
    """Return the name of a user of this host, or nothing where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


class People(NamedTuple):
    """People, groups and reviewers of approvers.yaml. Without the file: the registry's own user, and no group."""

    people: Mapping[str, Person] = {}
    groups: Mapping[str, frozenset[str]] = {}  # of names of people and reviewers
    reviewers: Mapping[str, Reviewer] = {}
    notices: tuple[NotificationTarget, ...] = ()
    bounds: PendingLimits = PendingLimits()
    store: StoreLocation = StoreLocation()
    file: str = ""
    owner: int | None = None  # uid who may approve where there is no file
    name_of: Callable[[int], str] = user_name

    def by_uid(self, uid: int, host: str = "") -> Actor:
        """Return who a user of this host is. `host` tells those apart who are nobody in the file."""
        user = self.name_of(uid)
        for person in self.people.values():
            if person.uid == uid or (user and person.user == user):
                return Actor(person.name, known=True)
        where = f"@{host}" if host and self.people else ""
        return Actor(f"{user or f'uid {uid}'}{where}", known=not self.file and uid == self.owner)

    def by_token(self, token: str) -> Actor | None:
        """Return the owner of a token. Compares all tokens, so timing reveals nothing."""
        given = hash_token(token)
        pairs = [(person.name, known) for person in self.people.values() for known in person.tokens]
        found = [name for name, known in pairs if hmac.compare_digest(known, given)]
        return Actor(found[0], known=True) if found else None

    def by_name(self, reviewer: str) -> Actor | None:
        """Return a program that reviews."""
        return Actor(reviewer, known=True, reviewer=True) if reviewer in self.reviewers else None

    def reviewers_of(self, question: "ApprovalRequest") -> list[Reviewer]:
        """List the reviewers of an approval request."""
        return [reviewer for reviewer in self.reviewers.values() if reviewer.asked(question)]

    def objection(self, who: Actor, asks: "Rule", starter: str) -> str:
        """Say why somebody can't approve what a rule asks about, or nothing: they can."""
        group = asks.terms.by
        if not who.known:
            return self.nobody(who)
        if who.reviewer and not self.reviewers[who.name].reviews(asks.rule):
            return f"{who.name} doesn't review {asks.rule}"
        if group is not None and group not in self.groups:
            return f"{asks.rule} wants {group}, and {self._no_group(group)}"
        if group is not None and who.name not in self.groups[group]:
            return f"{asks.rule} wants {group}, and {who.name} is not in that group"
        if who.name == starter and not who.reviewer and (group is not None or not asks.terms.by_self):
            return f"{who.name} started the task, and {asks.rule} needs another person"
        return ""

    def can_reject(self, who: Actor, rules: "Sequence[Rule]", starter: str) -> bool:
        """Whether a rejection by somebody counts: it never opens anything, so the one who started the task may too."""
        return who.known and (
            (not who.reviewer and (who.name == starter or not rules))
            or any(not self.objection(who, asks, "") for asks in rules)
        )

    def lacking(self, asks: "Rule", ballots: "Sequence[Ballot]", starter: str) -> int:
        """Return how many approvals a rule still wants; votes of whom it doesn't take no more don't count."""
        people, reviewers = 0, 0
        for ballot in ballots:
            if ballot.vote is not Vote.APPROVE or self.objection(self.actor(ballot), asks, starter):
                continue
            people += not ballot.reviewer
            reviewers += ballot.reviewer
        wanted = asks.terms.needed
        if wanted > 1:
            reviewers = min(reviewers, 1, people)  # together they are one voice, and never the only one
        return max(wanted - people - reviewers, 0)

    def short(self, asks: "Rule", starter: str) -> str:
        """Say why a rule never gets its approvals, also if everybody gives theirs; or nothing: it can get them."""
        if asks.terms.by is not None and asks.terms.by not in self.groups:
            return self._no_group(asks.terms.by)
        owner = () if self.file or self.owner is None else (self.by_uid(self.owner).name,)
        everybody = [Ballot(name, Vote.APPROVE, False, GrantTerms(), "", 0.0) for name in (*self.people, *owner)]
        programs = [Ballot(name, Vote.APPROVE, True, GrantTerms(), "", 0.0) for name in self.reviewers]
        lacking = self.lacking(asks, [*everybody, *programs], starter)
        return f"{lacking} more than there are who may" if lacking else ""

    def nobody(self, who: Actor) -> str:
        """Say that somebody may not approve, and of whom nobody knows where it would have to stand."""
        if who.known:
            return f"{who.name} may not approve this"
        if self.file:
            whom = "does not list them" if self.people else "lists nobody"
            return f"{who.name} may not approve: `{self.file}` {whom}"
        owner = "nobody" if self.owner is None else self.by_uid(self.owner).name
        return f"{who.name} may not approve: there is no approvers.yaml, and without it only {owner} may"

    def _no_group(self, wanted: str) -> str:
        if self.file:
            return f"there is no such group in `{self.file}`{did_you_mean(wanted, self.groups)}"
        page = "docs/reference/approvals.md"
        return f"there is no such group, because there is no approvers.yaml ({page})"

    def actor(self, ballot: Ballot) -> Actor:
        """Return who has voted, as they are known now."""
        if ballot.reviewer:
            return self.by_name(ballot.person) or Actor(ballot.person, reviewer=True)
        if self.file:
            return Actor(ballot.person, known=ballot.person in self.people)
        return Actor(ballot.person, known=self.owner is not None and ballot.person == self.by_uid(self.owner).name)


def hash_token(token: str) -> str:
    """Return the stored hash of a token. Tokens are 256 random bits, so a fast hash is safe."""
    return f"sha256:{hashlib.sha256(token.encode('utf-8', 'surrogatepass')).hexdigest()}"


def display_name(name: str, *, reviewer: bool) -> str:
    """Return the display name of a voter; a program's name begins with `reviewer`."""
    return REVIEWER + name if reviewer else name
