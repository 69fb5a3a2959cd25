"""Explaining a decision: which rules matched, why the rest did not, in words."""
