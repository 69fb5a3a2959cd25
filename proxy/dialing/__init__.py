"""Dialing: connects to the checked address of a decision, directly or through an upstream proxy."""
