"""Telemetry: events, the journal that keeps them, and the metrics that count them.

Telemetry records; it never decides. An event that can't be written raises an error, and the caller then blocks the
attempt. This file imports nothing, so that a start-up path pays only for the modules that it uses.
"""
