"""A sandbox's network: a namespace whose only device is `lo`, where every connection ends at the gate's sockets.

`plan` has the steps, `ruleset` the nftables ruleset; `encode` turns them into netlink bytes, and only it imports
pyroute2; `install` caches and sends those bytes; `gate_sockets` opens the sockets for the gate, the resolver and
process attribution, and reads counters.
"""
