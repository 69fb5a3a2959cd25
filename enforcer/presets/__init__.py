"""Finds this machine's package registries, and locks them in `presets.lock`: `exeat presets lock`.

What a client is set to is read from files that no task can have written; what such a registry says of itself is asked
over the network, shown, and locked. Nothing is executed, and no registry's name stands in the code.
"""
