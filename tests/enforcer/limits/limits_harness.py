"""What tests of limits share: what runs them, and where each is looked up in what was told."""

import sys
from pathlib import Path

PYTHON = "/usr/bin/python3"
EXEAT = (Path(sys.executable).with_name("exeat"),)
# `exeat` that looks five times as often, and gives a task that has to end as much less time.
OFTEN = """
import sys
from enforcer.limits import limit_monitor
from enforcer.run import supervise
limit_monitor.GRACE = supervise._COUNTERS_EVERY = 1.0
from enforcer.__main__ import main
sys.exit(main())
"""
IMPATIENT = (sys.executable, "-P", "-c", OFTEN)


def told(someone, reason):
    """Every event of a limit that was reached for this reason."""
    return [event for event in someone.events() if event["kind"] == "task.limited" and event["reason"] == reason]
