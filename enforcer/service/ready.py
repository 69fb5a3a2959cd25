"""What a run needs, imported before anybody asks for one: a process that is forked has it already.

Only what every run uses on its way, or once it has lasted for some seconds; what one imports beyond this it imports
itself, so a name that is missing here costs time, of each run, and nothing else.
"""

import contextlib
import importlib
from pathlib import Path
from typing import Final

from enforcer.service.warming import warm
from enforcer.system.errors import HostError
from enforcer.system.processes import run_in_child

MODULES: Final = (
    "enforcer.workspace.guarded",
    "enforcer.workspace.review",
    "enforcer.workspace.snapshot",
    "enforcer.journal.signing",
    "enforcer.limits.cgroups",
    "enforcer.limits.limit_monitor",
    "enforcer.seccomp_supervisor.supervisor",
    "enforcer.run.sandbox_spec",
    "enforcer.run.launch",
    "enforcer.service.spare",
    "enforcer.sandbox.stdio",
    "enforcer.run.supervise",
    "enforcer.run.task",
    "enforcer.policy.watch",
    "enforcer.workspace.task_workspace",
    "proxy.handover",
    "proxy.telemetry.decoding",
    "proxy.telemetry.masking",
    "proxy.telemetry.recorder",
    "proxy.telemetry.summary",
    "proxy.telemetry.usual.looking",
    "proxy.telemetry.visible",
    "proxy.udp.door",
    "tty",
)


def be_ready(cache: Path, certificate: bytes, system: Path) -> None:
    """Import it all, and work out what is the same for every run; `cache` is where the rest of that is kept.

    `certificate` is our CA's (PEM), `system` where root's rules are.
    """
    for name in MODULES:
        importlib.import_module(name)
    from enforcer.run import sandbox_spec
    from enforcer.sandbox import seccomp
    from enforcer.system import linux
    from enforcer.worker.trust import roots

    def work_out() -> None:
        sandbox_spec.network(cache)
        roots(certificate, cache)

    # What that imports where nothing is kept yet is as large as all the rest, and each run would be forked with it.
    with contextlib.suppress(HostError):
        run_in_child(work_out)
    work_out()
    seccomp.assemble(seccomp.TASK, linux.platform_machine())
    for commands in (False, True):
        seccomp.watching(commands=commands)
    warm(system)
