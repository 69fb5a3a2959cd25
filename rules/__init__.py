"""The policy language: what may leave. Pure: it reads the files it is given and does no other I/O.

Nothing here imports asyncio, mitmproxy, pyroute2 or a floor above (`proxy`, `enforcer`): invariant 10.
"""
