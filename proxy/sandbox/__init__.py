"""State of one sandbox in its worker: task, policy, taint, limits, quotas and event recorder."""
