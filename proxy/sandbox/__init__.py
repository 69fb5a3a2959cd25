"""One sandbox in its worker: task, policy, limits of its rules, and descriptor quota."""
