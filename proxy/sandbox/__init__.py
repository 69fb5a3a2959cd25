"""One sandbox in its worker: task, policy, taint, limits of its rules, descriptor quota, recorder."""
