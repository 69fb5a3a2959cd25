"""Exporters: send the journal to receivers of a SOC, each in a process of its own that the gate never waits for.

A sink either takes a batch whole, and says so only when the receiver has it, or raises. What it has not taken is sent
again: at least once, in the order of each of the journal's segments, none left out.
"""
