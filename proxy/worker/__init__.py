"""The worker: the process that serves the gates of one sandbox or of many, and what it makes for each of them."""
