"""DNS: server for a sandbox's queries, and lookup of addresses for the worker."""
