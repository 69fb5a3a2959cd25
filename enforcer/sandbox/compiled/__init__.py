"""What a sandbox's processes are, in C where there is a compiler: `python -m enforcer.sandbox.compiled.build`."""
