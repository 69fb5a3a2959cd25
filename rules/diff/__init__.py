"""Diff of two policies by what they decide, not by their text.

Endlessly many attempts fall into finitely many kinds, told apart by the patterns that rules have:
`rules.matching.signatures` finds a representative for each combination of patterns, `regions` which of them can differ
at all, `sample_attempts` the callers and requests that stand for all, `compare` decides one attempt of each kind under
both policies, and `statements` puts what came of it into sentences. Every verdict is `Policy.decide`'s own.
"""
