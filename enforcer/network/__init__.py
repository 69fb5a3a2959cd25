"""A sandbox's network: a namespace whose only device is `lo`, where every connection ends at one socket.

`install` has the plan of it, as netlink messages that say what they do, and sends them; `ruleset` is the ruleset among
them; `gate_sockets` opens what the gate, the resolver and attribution need inside, and reads what was refused.
"""
