"""UDP relay: flows to ports that a rule lists with `/udp`, with replies from the address that the task sent to.

`sockets` receives datagrams, or blocks them while no rule allows UDP, and sends replies and ICMP errors into the
sandbox. `listener` keeps the flows of one sandbox: which are open, which were denied, and how many there may be. `flow`
is one of them: it resolves, checks, records, and relays in both directions.
"""
