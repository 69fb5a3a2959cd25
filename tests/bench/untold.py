"""`exeat` with no record of connections and requests: no events, no journal of them, no metrics. Only the bench runs this."""

import sys

from enforcer.cli import main
from proxy.sandbox.recorder import Recorder

_ID = "00000000-0000-7000-8000-000000000000"

Recorder.decided = lambda *_, **__: _ID
Recorder.closed = Recorder.completed = lambda *_, **__: None

sys.exit(main())
