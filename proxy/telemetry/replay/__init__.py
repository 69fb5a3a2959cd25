"""Recorded attempts decided again by other rules, and rules learned from them."""
