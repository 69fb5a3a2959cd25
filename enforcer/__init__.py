"""What makes the proxy the only door, and runs tasks behind it."""
