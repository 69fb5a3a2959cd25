"""One run of a task, alone or in the service."""
