"""Doctor: checks what Exeat can do on this machine."""
