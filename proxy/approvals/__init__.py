"""What rules hold back until people decide: the questions, who may answer them, and what an answer is good for.

Rules say `ask`; a worker holds the attempt and asks (`asking`); the registry (`registry`) keeps the question in a
store, counts the votes and makes grants. Nothing here opens a way out: a grant only says which ask rules are satisfied,
and the policy decides again with that.
"""
