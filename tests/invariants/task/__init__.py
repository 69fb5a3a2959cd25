"""What runs inside the sandbox: attempts to get out, written with nothing but the standard library (and h2)."""
