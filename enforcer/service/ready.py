"""What a run needs, imported before anybody asks for one: a process that is forked has it already.

Only what a short run uses on its way; what it imports beyond this it imports itself, so a name that is missing here
costs time and nothing else.
"""

import importlib
from typing import Final

MODULES: Final = (
    "enforcer.changes.snapshot",
    "enforcer.keeping",
    "enforcer.limits.fence",
    "enforcer.limits.ward",
    "enforcer.notify.watcher",
    "enforcer.recipe",
    "enforcer.sandbox.launch",
    "enforcer.sandbox.stdio",
    "enforcer.supervise",
    "enforcer.task",
    "enforcer.workspace",
    "proxy.handover",
    "proxy.telemetry.keys",
    "proxy.telemetry.masking",
    "proxy.telemetry.summary",
    "proxy.telemetry.visible",
    "proxy.udp.door",
    "tty",
)


def be_ready() -> None:
    """Import it all."""
    for name in MODULES:
        importlib.import_module(name)
