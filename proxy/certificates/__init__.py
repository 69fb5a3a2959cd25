"""The installation's certificate authority: its key, its leaves, and the forms in which clients trust it."""
