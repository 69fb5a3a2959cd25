"""What the watcher of a sandbox tells its worker, and what the worker makes of it."""
