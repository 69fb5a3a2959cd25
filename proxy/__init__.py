"""The door: everything that leaves a sandbox passes here, decided by `rules` and told to `telemetry`."""
