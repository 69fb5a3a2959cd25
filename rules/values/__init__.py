"""Normalised values that rules and attempts are made of: host names, addresses, paths, and patterns of them."""
