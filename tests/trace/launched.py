"""Run the `exeat` command with its calls recorded: `python launched.py RECORDING WORD...`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.trace.recording import Recording  # noqa: E402 - by the path that was set

Recording(Path(sys.argv.pop(1))).begin()

from enforcer.cli import main  # noqa: E402 - its definitions are recorded

sys.exit(main())
