"""Explanation of a decision as text: which rules matched, and why the others did not."""
