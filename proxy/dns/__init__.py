"""DNS: answers a sandbox's lookups, and finds the addresses of names for the worker."""
