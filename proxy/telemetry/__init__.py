"""Telemetry: events, the journal that keeps them, and the metrics that count them.

Telemetry is told; it never decides. What must be written and can't be is an error to the caller, who then blocks.
Nothing is imported here, so that a start-up path pays only for the room it enters.
"""
