"""The worker's end of the channel to a sandbox's seccomp supervisor, and what the worker makes of its messages."""
