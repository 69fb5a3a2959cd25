"""Basics of the enforcer: system calls, errors, state directories, processes, signals and notices."""
