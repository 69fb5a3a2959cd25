"""The seccomp supervisor: the process outside a sandbox that the kernel asks about the system calls of its task."""
