"""The desk: `http://exeat.internal/` inside a sandbox, where a task asks what it may do and why it was refused.

Nothing of it leads anywhere: what is said there is about this task, and is read from this tenant alone (invariant 11).
`requests` reads what is asked, strictly; `desk` answers; `visit` is one connection.
"""
