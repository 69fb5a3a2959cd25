"""DNS names of the lab for the attempts, addresses that nothing may reach, and the rules."""

from ipaddress import IPv4Address

from tests.lab import Name

from .task import addresses, dns, fronting, http, http2, other, protocols, tls  # noqa: F401 - fills the list
from .task.attempts import EVERY, MARKS
from .task.wire import EVIL

_FIRST = int(IPv4Address("93.184.216.1"))
# No attempt may reach these. 10.20.0.9 is absent because a rule lists it.
UNREACHABLE = (
    EVIL, "93.184.219.67", "2606:4700::66", "8.8.8.8", "198.18.200.200", "198.19.255.254", "198.18.0.0",
    "10.0.0.1", "10.0.0.2", "10.99.0.9", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.1", "255.255.255.255",
    "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::5db8:db42",
)  # fmt: skip

ZONE_ADDRESSES = {
    zone: f"93.184.218.{at}" for at, zone in enumerate(("allowed", "spliced", "raw", "unknown", "reviewed"), 1)
}
FORGE = "forge.example"  # a git server
TEXT_ZONE = "text.example"  # it and the names below it have TXT records
HOST = "192.0.2.2"  # the lab's host itself

RULES = """
version: 1
name: tried
rules:
  - {id: inspected, to: "*.allowed.example", ports: [443, 80], action: allow}
  - {id: spliced, to: "*.spliced.example", tls: splice, action: allow}
  - {id: raw, to: "*.raw.example", ports: [22/tcp, 53/tcp, 9100-9199/tcp], action: allow}
  - {id: reading, to: "*.reading.example", http: {methods: [GET], paths: ["/echo"]}, action: allow}
  - {id: listed, to: "*.listed.example", resolves_to: [10.20.0.0/16], action: allow}
  - {id: reviewed, to: "*.reviewed.example", action: ask}
  - {id: evil, to: "**.evil.example", action: deny}
  - {id: marks, to: "*.mark.example", ports: [1/tcp], action: allow}
"""


def address_of(attempt: str) -> str:
    """Return the public address that only the host of this attempt has."""
    return str(IPv4Address(_FIRST + list(EVERY).index(attempt)))


def dns_names() -> dict[str, Name]:
    """Return the DNS names of the lab."""
    names = {"*.evil.example": Name.at(EVIL), f"*.{MARKS}": Name.at(EVIL)}
    names |= {f"*.more.{zone}.example": Name.at(address) for zone, address in ZONE_ADDRESSES.items()}
    names["*.here.example"] = Name.at(HOST)
    names[FORGE] = Name.at("93.184.218.21")
    names[TEXT_ZONE] = names[f"*.{TEXT_ZONE}"] = Name.at("93.184.218.22", text=("v=spf1 -all",))
    for one in EVERY.values():
        if one.turns:
            names[one.host] = Name.rebinding(*one.turns)
        else:
            names[one.host] = Name.at(*(one.addresses or (address_of(one.name),)))
            names[f"*.{one.host}"] = names[one.host]
    return names
