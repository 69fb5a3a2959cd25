"""Compiled relay: C code that passes bytes between sockets; optional, built by `build`."""
