"""The journal outside the worker: its signing key, where what belongs to it lies, and exports of it."""
