"""Enforcer: makes the gate a task's only way to the network, and runs tasks behind it."""
