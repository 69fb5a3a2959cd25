"""Fuzz for so many minutes: `python -m tests.fuzz [MINUTES] [TARGET...]`; the status is 1 if something was found."""

import sys
import time
import traceback

from tests.fuzz import inputs
from tests.fuzz.everything import SEEDS, TARGETS


def main(arguments: list[str]) -> int:
    minutes = float(arguments[0]) if arguments else 10.0
    names = arguments[1:] or list(TARGETS)
    seed = time.time_ns() & 0xFFFFFFFF
    found = 0
    for name in names:
        tried, until = 0, time.monotonic() + 60 * minutes / len(names)
        for data in inputs(SEEDS[name], seed):
            try:
                TARGETS[name](data)
            except Exception:  # noqa: BLE001 - whatever is raised was found
                traceback.print_exc()
                print(f"{name}, seed {seed}, input {tried}: {data!r}", file=sys.stderr)
                found += 1
                break
            tried += 1
            if time.monotonic() > until:
                break
        print(f"{name}: {tried} inputs of seed {seed}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
