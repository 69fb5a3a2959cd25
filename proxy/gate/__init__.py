"""The gate: serves every TCP connection of a sandbox from accept to close."""
