"""The gate: all traffic that leaves a sandbox goes through it, decided by `rules` and recorded by `telemetry`."""
