"""The worker: the process that serves the gates of one sandbox or of many."""
