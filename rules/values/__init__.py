"""Normalised values that rules and attempts are made of: host names, addresses, ports, paths, and patterns of them."""
