"""UDP relay: flows to ports that a rule lists with `/udp`, with replies from the address that was sent to.

`receiving_socket` is what datagrams arrive on, and how it is shut while no rule lets any out. `listener` has the flows
of one sandbox: which there are, which were refused, and how many there may be. `flow` is one of them: resolved,
checked, recorded, passed in both directions, ended. `reply_socket` sends back into the sandbox, replies and refusals.
"""
