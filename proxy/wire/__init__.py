"""Formats that are read from and written to other processes and the kernel."""
