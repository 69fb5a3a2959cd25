"""What this machine lets Exeat do."""
