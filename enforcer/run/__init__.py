"""One run of a task, standalone or in the service."""
