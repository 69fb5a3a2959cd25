"""Worker: the unprivileged process that serves the gates of one or more sandboxes."""
