"""Resource limits of a task: cgroups, rlimits, disk quota and time."""
