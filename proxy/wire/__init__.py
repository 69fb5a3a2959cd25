"""Wire formats between processes and with the kernel."""
