"""A sandbox's network: a namespace whose only device is `lo`, where every connection ends at one socket.

`plan` says what is to be, as values; `ruleset` is the ruleset among them; `encode` turns values into netlink bytes with
pyroute2; `install` keeps those bytes, because they never change, and sends them; `gate_sockets` opens what the gate,
the resolver and attribution need inside, and reads what was refused. Only `encode` imports pyroute2.
"""
