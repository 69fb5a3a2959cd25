"""Runs `exeat` with its tasks begun in one way: `python begun.py WAY WORD...`."""

import sys

from enforcer.cli import main
from enforcer.sandbox import begin

way = sys.argv.pop(1)
if way == "interpreted":
    begin.COMPILED = None
elif begin.COMPILED is None:
    sys.exit("nobody compiled it")
if way == "hindered":
    begin._NO_CORE = (99, 1)  # there is no such limit
sys.exit(main(sys.argv[1:]))
