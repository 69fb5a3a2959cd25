"""Learns the smallest rule file that allows recorded attempts: no name, method, port or protocol beyond them.

`generalize` finds the paths' patterns, `drafts` makes rules from the observations at each destination, and `writing`
writes the file. An observation that no rule covers exactly is left out and reported. Observations come from a sandbox,
so they are not trusted: they reach the file only as parsed values, and its comments only as printable ASCII.
"""
