"""Event loop of a worker: socket events, turns of sandboxes, slices of processor time, rate limiter."""
