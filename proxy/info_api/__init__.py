"""Info API: `http://exeat.internal/` in a sandbox, where a task learns what it may do and why it was refused.

Nothing of it leads anywhere: what is said there is about this task, and is read from this tenant alone (invariant 11).
`requests` reads requests, strictly; `question_handler` and `telemetry_handler` answer them; `connection` is one.
"""
