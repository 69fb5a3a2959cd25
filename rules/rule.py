"""One rule, normalised and with every default filled in.

`rules.matching.reference` says what it means that one rule matches; `rules.matching.plan` looks up which of many do.

Git is read from the protocol, never from headers such as the user agent. Repositories are compared as paths are,
without `.git`; rules that deny or ask compare repositories and refs without case, because many servers do.
"""

from collections.abc import Callable
from datetime import date
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from rules.attempt import Protocol, RefChange
from rules.ports import Ports
from rules.values.globs import Part, fold, fold_pattern, pattern_matches
from rules.values.names import HOST, HostName
from rules.values.paths import PathPattern, Reading, readings
from rules.verdicts import Log, Mode, Scan, TlsMode, Trust, Verdict

if TYPE_CHECKING:
    from rules.decision import ApprovalTerms, Limits
    from rules.feeds import Feed
    from rules.values.addresses import Network
    from rules.values.patterns import NamePattern, Pattern, TaskSelector


class ByIdentity:
    """Mixin before a NamedTuple: instances compare by identity.

    What is remembered is filed under such values. Two findings of different plans may say the very same, and what
    follows from them is not: one of them may be about an address that is not public.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Whether it is this one."""
        return self is other

    def __ne__(self, other: object) -> bool:
        """Compare by identity; tuples define their own `!=`."""
        return self is not other


_SUFFIX: Final = ".git"


def strip_git_suffix(path: str) -> str:
    """Strip what servers ignore: slashes and `.git` at the end, repeatedly."""
    while path.endswith(("/", ".git")):
        path = path.removesuffix("/").removesuffix(".git")
    return path


def repository_readings(path: str) -> tuple[Reading, ...]:
    """List the readings of a repository's path, without `.git`; empty: ambiguous.

    In another case it is left out by some servers and not by others.
    """
    ways = readings("/" + strip_git_suffix(path))
    exact = [_without_suffix(way, str) for way in ways]
    return tuple(dict.fromkeys((*exact, *[_without_suffix(way, fold) for way in exact])))


def _without_suffix(way: Reading, form: Callable[[str], str]) -> Reading:
    """Drop a final `.git`; a slash in a segment was written `%2F` and stays distinct from a separator."""
    while way and (not way[-1] or form(way[-1]).endswith(_SUFFIX)):
        way = (*way[:-1], way[-1][: -len(_SUFFIX)]) if way[-1] else way[:-1]
    return way


class RefPattern(NamedTuple):
    """A pattern for refs: `refs/heads/main`, `refs/heads/*`, `refs/**`."""

    text: str
    parts: tuple[Part, ...]
    folded: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern. Raises ValueError with what to write instead."""
        if text in {"true", "*", "**"}:
            raise ValueError(f"`{text}` is no ref: every ref is `refs/**`, every branch `refs/heads/**`")
        if not text.startswith("refs/") or text.endswith("/"):
            raise ValueError(f"`{text}` must be a whole ref, as in `refs/heads/{text.strip('/') or 'main'}`")
        exact = PathPattern.parse("/" + text)
        return cls(exact.text[1:], exact.parts, fold_pattern(exact.parts))

    def matches(self, ref: Reading, *, folded: bool = False) -> bool:
        """Whether the segments of a ref are covered."""
        return pattern_matches(self.folded if folded else self.parts, ref)


class RepoPattern(NamedTuple):
    """A pattern for repositories: `acme/web`, `acme/*`, `**`."""

    text: str
    parts: tuple[Part, ...]
    folded: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern, with or without `.git` at its end. Raises ValueError with what to write instead."""
        bare = strip_git_suffix(text)
        if bare.startswith("/") or "://" in bare:
            raise ValueError(f"`{text}` must be the path of a repository on its host, as in `acme/web`")
        exact = PathPattern.parse("/" + bare)
        if strip_git_suffix(exact.text[1:]) != exact.text[1:]:
            return cls.parse(exact.text[1:])  # `.git` was written with escapes
        return cls(exact.text[1:], exact.parts, fold_pattern(exact.parts))

    def matches(self, repo: Reading, *, folded: bool = False) -> bool:
        """Whether the segments of a repository's path are covered."""
        return pattern_matches(self.folded if folded else self.parts, repo)


class GitRule(NamedTuple):
    """The `git:` of a rule. `push` None: no push is covered."""

    repos: tuple[RepoPattern, ...]
    fetch: bool = False
    push: tuple[RefPattern, ...] | None = None
    changes: frozenset[RefChange] = frozenset()


class Presence(Enum):
    """What a rule may say of a parameter or header instead of its values."""

    ABSENT = "absent"
    PRESENT = "present"


type Values = tuple[Pattern, ...] | Presence


class Http(NamedTuple):
    """Conditions on HTTP requests. None: any method, any path; the defaults of the last three are in requests.py."""

    methods: frozenset[str] | None = None
    paths: tuple[PathPattern, ...] | None = None
    query: tuple[tuple[str, Values], ...] = ()  # in the order of names
    headers: tuple[tuple[str, Values], ...] = ()  # in the order of names, which are lower-case
    body: bool | None = None
    max_url: int | None = None  # bytes
    websocket: bool | None = None


class Exemption(NamedTuple):
    """What a rule does not cover. Without names and networks: wherever the rule itself applies."""

    names: "tuple[NamePattern, ...]" = ()
    networks: "tuple[Network, ...]" = ()
    ports: tuple[Ports, ...] | None = None
    http: Http | None = None
    resolves_to: "tuple[Network, ...] | None" = None
    selector: "TaskSelector | None" = None
    git: GitRule | None = None
    credential: str | None = None
    when_tainted: bool = False

    @property
    def looks_at_requests(self) -> bool:
        """Whether the exemption depends on the request."""
        return self.http is not None or self.git is not None or self.credential is not None

    @property
    def is_certain(self) -> bool:
        """Whether target, address, task and ports are all that it hangs on."""
        return not self.looks_at_requests and not self.when_tainted


class _RuleFields(NamedTuple):
    id: str
    action: Verdict
    names: "tuple[NamePattern, ...]" = ()
    networks: "tuple[Network, ...]" = ()
    ports: tuple[Ports, ...] | None = None
    resolves_to: "tuple[Network, ...] | None" = None
    http: Http | None = None
    default: bool = False
    excepts: tuple[Exemption, ...] = ()
    tls: TlsMode = TlsMode.INSPECT
    mode: Mode | None = None  # of a default rule; None: the settings'
    idle_timeout: float | None = None  # seconds; None: the settings'
    why: str = ""
    selector: "TaskSelector | None" = None  # `for` in a rule file
    until: date | None = None  # the last day on which it allows or asks
    git: GitRule | None = None
    credential: str | None = None  # the name of a secret
    when_tainted: bool = False
    limits: "Limits | None" = None
    approval: "ApprovalTerms | None" = None  # of an ask
    ca: str | None = None  # the path of a file of certificates, trusted for this destination
    dns_types: frozenset[str] = frozenset()
    trust: Trust | None = None
    scan: Scan | None = None
    log: Log | None = None
    feeds: "tuple[Feed, ...]" = ()  # where `to` has lists


class Rule(ByIdentity, _RuleFields):
    """A rule, known by its `id`, `file:id`. `ports` None: every port and protocol.

    Sets of rules are made for each decision, and what rules say is long.
    """

    __slots__ = ()

    @property
    def allows(self) -> bool:
        """Whether bytes may leave under this rule: allow and flag."""
        return self.action.allows

    @property
    def has_request_conditions(self) -> bool:
        """Whether the rule has conditions on requests, apart from its exemptions."""
        return self.http is not None or self.git is not None or self.credential is not None

    def splices(self, port: int) -> bool:
        """Whether TLS on `port` is spliced: the rule has `tls: splice`, or allows any bytes there.

        `tls: splice` in the settings doesn't apply to a rule that scans for secrets.
        """
        unread = self.tls is TlsMode.SPLICE and self.scan in (None, Scan.OFF)
        if unread or self.ports is None:  # every port and protocol, as asks may be
            return unread
        return not any(p.protocol is Protocol.TLS and p.low <= port <= p.high for p in self.ports)

    @property
    def looks_at_requests(self) -> bool:
        """Whether the rule depends on the request."""
        return self.has_request_conditions or any(exemption.looks_at_requests for exemption in self.excepts)

    @property
    def looks_at_addresses(self) -> bool:
        """Whether the rule depends on the addresses of a name."""
        return self.resolves_to is not None or any(exemption.resolves_to is not None for exemption in self.excepts)

    @property
    def looks_at_headers(self) -> bool:
        """Whether the rule depends on request headers."""
        if self.credential is not None or any(exemption.credential is not None for exemption in self.excepts):
            return True
        conditions = (self.http, *(exemption.http for exemption in self.excepts))
        return any(http is not None and bool(http.headers) for http in conditions)

    @property
    def looks_at_git(self) -> bool:
        """Whether the rule depends on the git request."""
        return self.git is not None or any(exemption.git is not None for exemption in self.excepts)

    @property
    def depends_on_taint(self) -> bool:
        """Whether it depends on what a task has read if this rule matches."""
        return self.when_tainted or any(exemption.when_tainted for exemption in self.excepts)

    @property
    def needs_address(self) -> bool:
        """Whether the rule denies or asks only about certain addresses, so `check_address` evaluates it."""
        return not self.allows and self.looks_at_addresses

    @property
    def asks_before_lookup(self) -> bool:
        """Whether the rule asks before the address is known where no other rule allows the name.

        Not for `to: "*"`: approvers would get a request for every name that a task invents.
        """
        return self.action is Verdict.ASK and not any(name.text == "*" for name in self.names)


def covers_exeat_name(rule: Rule, name: HostName) -> bool:
    """Whether a rule that covers a name of Exeat's zone counts for it: an allow must have exactly the host's name."""
    return not rule.allows or names_host(rule, name)


def names_host(rule: Rule, name: HostName) -> bool:
    """Whether a rule has exactly the name of this machine, `host.exeat.internal`."""
    return name == HOST and any(pattern.text == HOST for pattern in rule.names)
