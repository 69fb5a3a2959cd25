import json
import sys

import pytest

from tests.enforcer.limits.limits_harness import EXEAT

MEANS = """
import json
from enforcer.limits.resource_limits import Limits, make_resource_limits
fence = make_resource_limits(Limits(memory=1 << 30, said=frozenset({"memory"})))
print(json.dumps(fence.means))
fence.remove()
"""


@pytest.fixture
def limited(someone):
    """Run a command under a `sandbox:` section."""

    def run(box, *command, program=EXEAT, **more):
        rules = someone.write(
            someone.home / "rules.yaml", f"version: 1\nname: x\nsandbox: {json.dumps(box)}\nrules: []\n"
        )
        return someone.run([*program, "run", "--rules", rules, "--", *command], **more)

    return run


@pytest.fixture
def means(someone):
    """By what this machine keeps whoever this is within each limit."""
    return json.loads(someone.run([sys.executable, "-c", MEANS]).stdout)
