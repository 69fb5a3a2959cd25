"""DNS records of the lab as values, which tests write down and send to the origin process."""

from dataclasses import asdict, dataclass, field

UPSTREAM_RESOLVER = "203.0.113.53"  # where the lab's authoritative server listens, and its resolv.conf points


@dataclass(frozen=True)
class Name:
    """The records of one name.

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
        """Return a name with these addresses."""
        return cls(tuple(addresses), **more)

    @classmethod
    def rebinding(cls, *turns: tuple[str, ...]) -> "Name":
        """Return a name whose addresses change with each lookup, with a TTL of 0."""
        return cls(turns=tuple(turns), ttl=0)

    def to_json(self) -> dict:
        """Return a value for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> "Name":
        """Read the value of `to_json`."""
        tuples = {key: tuple(value[key]) for key in ("addresses", "text")}
        return cls(**{**value, **tuples, "turns": tuple(map(tuple, value["turns"]))})

    def addresses_at(self, turn: int) -> tuple[str, ...]:
        """Return the addresses of one lookup, counted from 0."""
        return self.turns[min(turn, len(self.turns) - 1)] if self.turns else self.addresses


@dataclass
class Zone:
    """All names; lookups are exact, else by the nearest wildcard."""

    names: dict[str, Name] = field(default_factory=dict)

    def find(self, name: str) -> Name | None:
        """Return the records of a name, in lower case and without a final dot; None if it does not exist."""
        if name in self.names:
            return self.names[name]
        labels = name.split(".")
        for first in range(1, len(labels)):
            if found := self.names.get(".".join(["*", *labels[first:]])):
                return found
        return None
