"""Matching: which rules cover an attempt, which of them wins, and which came nearest. Compiled once for a policy."""
