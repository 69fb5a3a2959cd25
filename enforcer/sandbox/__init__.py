"""Sandbox of a task: namespaces, mount plan, ids and system call filter, built from values that describe themselves."""
