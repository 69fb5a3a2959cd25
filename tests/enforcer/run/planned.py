"""Goes the way of `exeat run` up to where it would make the sandbox, and prints what it would make it of."""

import json
import mmap
import os
import sys
import types

from enforcer.cli import main
from enforcer.network import install
from enforcer.run import launch
from enforcer.sandbox import landlock
from enforcer.system.errors import HostError
from enforcer.worker import confinement
from tests.soak.leftovers import poll_until


class Elsewhere:
    """What a process that is forked from this one is about to execute, as it says itself."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 1 << 18)

    def tell(self, lines):
        said = json.dumps(lines).encode()
        self._memory[8 : 8 + len(said)] = said
        self._memory[:8] = len(said).to_bytes(8)

    def told(self):
        size = poll_until(lambda: int.from_bytes(self._memory[:8]))
        return json.loads(self._memory[8 : 8 + size])


gate, network = Elsewhere(), Elsewhere()
enter, execute = confinement.namespaces.enter, install.execute


def gate_enters(steps):
    gate.tell([step.describe().replace(f"/proc/{os.getpid()}", "/proc/PID") for step in steps])
    enter(steps)


def network_is_made(encoded, **more):
    network.tell([line for batch in encoded[1:-1] for line in batch.statements])
    return execute(encoded, **more)


def told(recipe, spare, _carry):
    spare.wait_until_ready()
    print(json.dumps({
        "files": [step.describe() for step in recipe.steps],
        "wall": [landlock.describe(grant) for grant in recipe.program.grants],
        "variables": sorted(recipe.program.environment),
        "filter": len(recipe.program.seccomp) // 8,
        "hostname": recipe.hostname,
        "who": [recipe.identity.user, recipe.identity.uid, recipe.identity.gid],
        "inner": [list(line) for line in recipe.identity.inner_uids.lines],
        "argv": recipe.program.argv,
        "gate": gate.told(),
        "network": network.told(),
    }), flush=True)  # fmt: skip
    raise HostError("told")


launch.launch = told
confinement.namespaces = types.SimpleNamespace(enter=gate_enters)
install.execute = network_is_made
sys.exit(main(sys.argv[1:]))
