"""What mitmproxy brings along is left out where the gate inspects, and breaks whatever would use it."""

import subprocess
import sys

import pytest

TRIED = {
    "the engine is there without": """
import proxy.inspection.engine
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(sorted(loaded & {"aioquic", "service_identity", "pylsqpack", "ruamel", "mitmproxy"}))
""",
    "what asks whether it is one hears no": """
from mitmproxy.proxy.layers import http, quic
from mitmproxy.proxy.layers.quic import QuicStreamEvent
print(isinstance(http, QuicStreamEvent), quic.QuicStreamEvent is QuicStreamEvent)
""",
    "who would use one can not": """
from mitmproxy.proxy.layers import ClientQuicLayer
try:
    ClientQuicLayer(None)
except RuntimeError as error:
    print(error)
""",
    "the rest is what it was": """
import importlib.util
from mitmproxy.proxy.layers import http
print(http.HttpLayer.__module__, importlib.util.find_spec("aioquicker"))
""",
}
SEEN = {
    "the engine is there without": "['mitmproxy']\n",
    "what asks whether it is one hears no": "False True\n",
    "who would use one can not": "`ClientQuicLayer` is not part of the gate\n",
    "the rest is what it was": "mitmproxy.proxy.layers.http None\n",
}


@pytest.mark.parametrize("what", TRIED)
def test_what_the_gate_has_no_use_for_is_not_loaded(what):
    begin = "import sys\nfrom proxy.inspection import unneeded\nunneeded.leave_out()\n"
    done = subprocess.run([sys.executable, "-c", begin + TRIED[what]], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (SEEN[what], "")
