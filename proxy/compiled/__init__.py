"""Compiled code of the gate: C that relays bytes between sockets, used where it has been built (`build`)."""
