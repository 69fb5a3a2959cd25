"""What a service's imports left free between what stays is taken before it forks: later objects lie side by side."""

import json
import subprocess
import sys

PROGRAM = """
import json
from enforcer.service.holes import fill

def pages(size):
    made = [bytes(size) for _ in range(60)]
    return len({id(each) >> 12 for each in made})

sizes = (60, 200, 400, 900)
stay = {size: [bytes(size) for _ in range(6000)] for size in sizes}
for each in stay.values():
    del each[::41]  # a hole here and there
before = sum(map(pages, sizes))
filled = fill()
print(json.dumps({"before": before, "after": sum(map(pages, sizes)), "filled": filled}))
"""


def test_what_is_made_once_holes_are_filled_lies_side_by_side():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["before"] > 100, "there were no holes"
    assert found["after"] < found["before"] / 2
    assert found["filled"] < 41 * 20_000
