"""Event loop of a worker: ready sockets, turns of sandboxes, and slices of processor time."""
