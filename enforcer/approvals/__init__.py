"""Approvals server: the process of the registry, outside every sandbox, where people answer approval requests.

One process a state directory. It alone has the store open; whoever needs it first starts it, and it ends by itself when
nobody does. A sandbox reaches none of this: state is hidden from it (invariant 8), and a peer in another user namespace
is refused whatever door it came through.
"""
