"""Exporters: send the journal to receivers of a SOC. Each runs in its own process, for which the gate never waits.

An exporter returns when the receiver has the whole batch, or raises an error and the batch is sent again: every event
at least once, in the order of each segment.
"""
