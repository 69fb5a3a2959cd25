"""The `exeat` command, as `python -m enforcer`."""

import sys

from enforcer.cli import main

if __name__ == "__main__":
    sys.exit(main())
