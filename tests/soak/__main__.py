"""`python -m tests.soak [RUNS] [SEED]`, as root or not: 300 runs take some minutes, and then 200 at once; ends with 1 if anything was left.

Each kind of process has its turn; from 300 runs on it is a fault, too, if one was never killed. A seed gives the same
victims, and nearly the same moments. `tests/enforcer/service` has the short form. As root all of it happens in a network
whose only way out is watched; as an ordinary user that part is left out, and said to be.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.soak import origin
from tests.soak.soak import Soak

AT_ONCE, MANY = 4, 200
_ENOUGH = 300  # runs in which each kind of process has its turn so often that one must have been there
_OFTEN = 40  # runs between two looks at what is left


def main(runs: int = 300, seed: int | None = None) -> int:
    """Do so many, and say how it went."""
    seed = time.time_ns() % 1_000_000 if seed is None else seed
    print("seed", seed, flush=True)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        if os.geteuid() == 0:
            origin.world(place / "seen")
        elif origin.PROCESS not in os.environ:  # `python -m tests.soak.origin` as root has it for a user too
            print("the origin isn't there: to make it takes root")
        (place / "work").mkdir()
        soak = Soak(place / "work", seed)
        began = time.monotonic()
        try:
            for at in range(0, runs, AT_ONCE):
                soak.round(min(AT_ONCE, runs - at))
                if at % _OFTEN == _OFTEN - AT_ONCE:
                    soak.settle()
                    print(f"{at + AT_ONCE} runs, {time.monotonic() - began:.0f} s", flush=True)
            soak.settle()
            soak.round(MANY, "nobody", seconds=MANY / 5)
            print(f"{MANY} at once, {time.monotonic() - began:.0f} s", flush=True)
            soak.settle()
            soak.end()
        finally:
            soak.close()
        print(f"{runs} runs in {time.monotonic() - began:.0f} s, seed {seed}")
        if runs >= _ENOUGH:
            soak.wrong += [f"no {kind} was ever killed" for kind in soak.spared()]
        print("killed:", dict(soak.killed))
        print("not there to be killed:", dict(soak.missed) or "none")
        print("ends:", dict(soak.ends))
        print("answers:", dict(soak.answers))
        print(f"merged: {soak.reviewed.merged}, of which {soak.reviewed.stopped} were stopped in their midst")
        print("left:", soak.wrong or "nothing")
        return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
