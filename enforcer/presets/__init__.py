"""Finds this machine's package registries, and locks them in `presets.lock`: `exeat presets lock`.

The settings of clients are read from files that no task can have written. The hosts that a registry names are requested
over the network, shown, and locked. Nothing is executed, and the code contains no name of a registry.
"""
