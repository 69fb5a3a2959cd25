"""Seccomp supervisor: the process outside a sandbox that the kernel asks about the task's system calls."""
