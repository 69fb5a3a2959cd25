"""What the lab's DNS says of a name, as values that can be written down in a test and sent to the origin process."""

from dataclasses import asdict, dataclass, field

UPSTREAM_RESOLVER = "203.0.113.53"  # where the lab's authoritative server listens, and its resolv.conf points


@dataclass(frozen=True)
class Name:
    """One name's answers.

    With `turns` each lookup gets the next set of addresses and the last one stays: a name that rebinds. A and AAAA are
    counted apart, so that one getaddrinfo() is one turn.
    """

    addresses: tuple[str, ...] = ()
    turns: tuple[tuple[str, ...], ...] = ()
    text: tuple[str, ...] = ()
    alias: str = ""  # a CNAME, followed in the same answer
    ttl: int = 30
    fails: str = ""  # servfail, refused, or silent: no answer at all
    truncated: bool = False  # over UDP: ask again over TCP
    certificate: str = "good"  # good, self-signed, expired, wrong-name

    @classmethod
    def at(cls, *addresses: str, **more: object) -> "Name":
        """Spell the usual case: a name at these addresses."""
        return cls(tuple(addresses), **more)

    @classmethod
    def rebinding(cls, *turns: tuple[str, ...]) -> "Name":
        """Spell a name whose addresses change with each lookup, and that nobody may cache."""
        return cls(turns=tuple(turns), ttl=0)

    def to_json(self) -> dict:
        """Give a form that JSON can carry."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> "Name":
        """Read what `to_json` made."""
        tuples = {key: tuple(value[key]) for key in ("addresses", "text")}
        return cls(**{**value, **tuples, "turns": tuple(map(tuple, value["turns"]))})

    def addresses_at(self, turn: int) -> tuple[str, ...]:
        """Return the addresses of one lookup, counted from 0."""
        return self.turns[min(turn, len(self.turns) - 1)] if self.turns else self.addresses


@dataclass
class Zone:
    """All names, looked up as DNS does: exactly, else by the nearest wildcard."""

    names: dict[str, Name] = field(default_factory=dict)

    def find(self, name: str) -> Name | None:
        """Return what is said of a name in lower case without its last dot; None: there is no such name."""
        if name in self.names:
            return self.names[name]
        labels = name.split(".")
        for first in range(1, len(labels)):
            if found := self.names.get(".".join(["*", *labels[first:]])):
                return found
        return None
