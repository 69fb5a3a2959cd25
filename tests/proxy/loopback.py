"""Lets rules open the loopback by address, which they can't: it is all the internet that there is in these tests."""

import rules.matching.index
from rules.loading import rule_schema


def let_out(set_attribute):
    """Change the rules with `set_attribute(owner, name, value)`."""
    opens, check = rules.matching.index.network_opens, rule_schema._check_opening
    set_attribute(
        rules.matching.index,
        "network_opens",
        lambda network, address: opens(network, address) or _opened(network, address),
    )
    set_attribute(
        rule_schema,
        "_check_opening",
        lambda reader, network, node: network.is_loopback or check(reader, network, node),
    )


def _opened(network, address):
    return address.is_loopback and address in network and network.is_loopback
