"""Approvals: requests for attempts that rules hold, who may answer them, and the grants that answers make.

Rules say `ask`; a worker holds the attempt and submits a request (`client`); the registry (`registry`) keeps it in a
store, counts the votes and makes grants. Nothing here opens a way out: a grant only says which ask rules are satisfied,
and the policy decides again with that.

The server process is not here: `enforcer/approvals/server.py` runs it, with `enforcer/approvals/app.py`.
"""
