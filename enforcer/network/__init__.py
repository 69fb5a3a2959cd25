"""A sandbox's network: a namespace whose only device is `lo`, where every connection ends at one socket.

`plan` says what is to be, as values; `capture` is the ruleset among them; `encode` turns values into netlink bytes with
pyroute2; `cache` keeps those bytes, because they never change; `execute` sends them; `sockets` opens what the gate,
the resolver and attribution need inside; `counters` reads what was refused. Only `encode` imports pyroute2.
"""
