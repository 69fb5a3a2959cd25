"""Diff of two policies by what they decide, not by their text.

Attempts are endless, but the patterns of rules distinguish only finitely many kinds. `rules.matching.signatures` finds
a sample for each combination of patterns, `regions` the combinations that can differ, and `sample_attempts` the callers
and requests. `compare` decides one attempt of each kind under both policies with `Policy.decide`, and `statements`
writes the differences as sentences.
"""
