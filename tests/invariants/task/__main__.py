"""Run every attempt, one after the other, and print what each saw as one JSON object: `python -m task LIBRARIES`."""

import json
import sys

from . import addresses, dns, fronting, http, http2, other, protocols, tls  # noqa: F401 - each puts its own on the list
from .attempts import EVERY, run

sys.path.append(sys.argv[1])  # where the h2 library is, shown by --read
print(json.dumps({name: run(name) for name in EVERY}))
