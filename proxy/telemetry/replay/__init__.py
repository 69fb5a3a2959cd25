"""Replays recorded attempts under other rules, and learns rules from them."""
