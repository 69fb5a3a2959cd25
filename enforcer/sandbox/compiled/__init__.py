"""Init process of a sandbox in C, built where there is a compiler: `python -m enforcer.sandbox.compiled.build`."""
