"""The journal outside the worker: signing key, keeper, location of its files, and exports."""
