"""Learns the smallest rule file that allows recorded attempts: no name, method, port or protocol beyond them.

`generalize` finds the paths' patterns, `drafts` makes rules of what was seen at each place, `writing` writes them down.
Whatever can't be written as a rule that means exactly it is left out and told. What was seen is a sandbox's word: it
reaches the file only as values that the rule language has read, and comments only as printable ASCII.
"""
