"""How much of the host a task may take: cgroups, resource limits, room in memory, and time."""
