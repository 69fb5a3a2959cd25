"""What every run is forked with is no larger than what runs use."""

import subprocess
import sys

PROGRAM = """
import enforcer.service.service, importlib, sys
from enforcer.service.ready import MODULES
for name in MODULES:
    importlib.import_module(name)
print(*sorted({"asyncio", "cryptography", "mitmproxy", "pyroute2", "ssl"} & set(sys.modules)))
"""


def test_a_service_has_nothing_large_in_memory_that_a_run_does_without():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
