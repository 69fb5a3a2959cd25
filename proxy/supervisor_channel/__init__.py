"""The worker's end of the channel to a sandbox's seccomp supervisor, and process attribution."""
