"""The `exeat` command, as what is compiled in its place (`compiled/exeat.c`) has Python execute it: by this path."""

import sys

from enforcer.cli import main

if __name__ == "__main__":
    sys.exit(main())
