"""What a task's process does in C where there is a compiler: `python -m enforcer.sandbox.compiled.build`."""
