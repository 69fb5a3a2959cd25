"""Addresses that stand for networks: for each network one address that is in it and in none of the smaller ones.

What is public and what is not is told apart too: a network that lets out opens nothing that is not public unless it
lies inside (`addresses.opens`), so of what is not public in a network, and in no smaller one, one address stands for
all.
"""

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.addresses import block_of, is_within, normal, parse_network
from rules.special import BLOCKS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from rules.addresses import Address, Network

EVERYWHERE: Final = (parse_network("0.0.0.0/0"), parse_network("::/0"))


class Place(NamedTuple):
    """A network, and an address of it that no smaller network at hand has."""

    network: "Network"
    address: "Address"


def places(within: "Iterable[Network]", others: "Collection[Network]") -> "Iterator[Place]":
    """Give places for each network of `within`, and for each smaller one of `others` that lies inside."""
    wanted = sorted(set(within), key=_order)
    everything = sorted({*wanted, *others}, key=_order)
    blocks = sorted((block.network for block in BLOCKS), key=_order)
    told: set[Network] = set()
    for network in wanted:
        for smaller in (network, *_inside(network, everything)):
            if smaller not in told:
                told.add(smaller)
                yield from _of(smaller, list(_inside(smaller, everything)), list(_inside(smaller, blocks)))


def _of(network: "Network", smaller: "list[Network]", blocks: "list[Network]") -> "Iterator[Place]":
    """Give an address beside the smaller networks and the blocks, and one in a block and beside the networks."""
    plain = _gap(network, sorted((*smaller, *blocks), key=_order))
    if plain is not None:
        yield Place(network, plain)
    for block in blocks:
        if any(block == other or is_within(block, other) for other in smaller):
            continue
        address = _gap(block, [*_inside(block, smaller)])
        if address is not None and block_of(address) is not None:
            yield Place(network, address)
            return


def _order(network: "Network") -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _inside(network: "Network", ordered: "list[Network]") -> "Iterator[Network]":
    last = network.version, int(network.broadcast_address), 129
    for other in ordered[bisect_right(ordered, _order(network), key=_order) :]:
        if _order(other) > last:
            return
        yield other


def _gap(network: "Network", smaller: "list[Network]") -> "Address | None":
    """Find the first address of `network` that none of the networks inside it, in order, has."""
    at = int(network.network_address)
    for inside in smaller:
        if int(inside.network_address) > at:
            break
        at = max(at, int(inside.broadcast_address) + 1)
    if at > int(network.broadcast_address):
        return None
    address = type(network.network_address)(at)
    return address if normal(address) == address else None
