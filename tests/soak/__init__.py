"""Faults by the hundred: runs under a service while its processes, and it, are killed at random moments; then nothing may be left."""
