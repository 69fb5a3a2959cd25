"""The loop of a worker: sockets that are ready, whose turn it is, and for how long."""
