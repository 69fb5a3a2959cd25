"""What the gate tells the outside: events, the journal they are kept in, and the metrics counted from them.

Telemetry is told; it never decides. What must be written and can't be is an error to the caller, who then blocks.
Nothing is imported here, so that a start-up path pays only for the room it enters.
"""
