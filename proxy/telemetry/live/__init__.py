"""What happens just now, for `exeat top`: `state` keeps it, `screen` shows it."""
