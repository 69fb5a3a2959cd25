"""Asks the sandbox's resolver for one name and type; run with -m."""

import json
import sys

from .dns import over_udp

print(json.dumps(over_udp(sys.argv[1], int(sys.argv[2]), "8.8.8.8")))
