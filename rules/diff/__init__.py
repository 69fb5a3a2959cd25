"""What two policies decide otherwise, by meaning and not by text.

Endlessly many attempts fall into finitely many kinds, told apart by the patterns that rules have:
`rules.matching.signatures` finds a representative for each combination of patterns, `atoms` which of them can differ at
all, `facets` what else tells attempts apart, `compare` decides one attempt of each kind under both policies, and
`words` puts what came of it into sentences. Nothing here decides: every verdict is `Policy.decide`'s own.
"""
