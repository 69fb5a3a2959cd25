"""An HTTP request as it was received: its head, checked and read, and the refs that a push names. Pure."""
