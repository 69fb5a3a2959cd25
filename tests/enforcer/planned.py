"""Goes the way of `exeat run` up to where it would make the sandbox, and prints what it would make it of."""

import json
import sys

from enforcer.cli import main
from enforcer.errors import HostError
from enforcer.sandbox import landlock, launch


def told(recipe, _spare):
    print(json.dumps({
        "files": [step.describe() for step in recipe.steps],
        "wall": [landlock.describe(grant) for grant in recipe.program.wall],
        "variables": sorted(recipe.program.environment),
        "filter": len(recipe.program.seccomp) // 8,
        "hostname": recipe.hostname,
        "who": [recipe.identity.user, recipe.identity.uid, recipe.identity.gid],
        "inner": [list(line) for line in recipe.identity.inner_uids.lines],
        "argv": recipe.program.argv,
    }), flush=True)  # fmt: skip
    raise HostError("told")


launch.launch = told
sys.exit(main(sys.argv[1:]))
