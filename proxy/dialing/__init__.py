"""Dialing: from a decision to a connected socket, directly or through an upstream proxy."""
