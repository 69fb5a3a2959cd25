"""Info API: `http://exeat.internal/` in a sandbox, where a task learns what it may do and why it was refused.

Nothing of it leaves the gate: answers are about this task, and are read from its own sandbox alone (invariant 11).
`requests` reads requests, strictly; `info_handler` and `telemetry_handler` answer them; `connection` serves one.
"""
