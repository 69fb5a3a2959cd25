"""Runs `exeat` with its sandboxes made in one way: `python begun.py WAY WORD...`."""

import sys

from enforcer.cli import main
from enforcer.sandbox import init, task_start

way = sys.argv.pop(1)
if way == "interpreted":
    init.COMPILED = ""
elif not init.COMPILED:
    sys.exit("nobody compiled it")
if way == "hindered":
    task_start._SIG_SETMASK = 99  # there is no such way to change a mask
sys.exit(main(sys.argv[1:]))
