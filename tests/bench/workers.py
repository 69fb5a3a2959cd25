"""Sandboxes side by side, each with a worker of its own: what one's requests cost when another is as busy.

Nothing is kept on a core here: workers, clients and origin go where the scheduler puts them, as on a user's machine.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.bench import figures
from tests.bench.figures import Figure
from tests.bench.gate import Gate

_PARALLEL = 8  # clients in each sandbox
_READY = 0.5  # seconds after which all clients start together
_SETTLE = 0.05  # seconds that the ends of the last connections may take
_SHORTEST, _LONGEST = 0.5, 0.75  # seconds of load


def says(count: int) -> str:
    """Name the line of so many sandboxes."""
    return "one sandbox alone" if count == 1 else f"{count} sandboxes at once"


def requests(gates: Sequence[Gate], rounds: int, seconds: float) -> dict[str, Figure]:
    """Inspected requests on kept connections: of the first sandbox alone, in turns with all of them at once."""
    even = max(rounds - rounds % 2, 2)  # so that each is first as often

    def once(count: int) -> dict[str, float]:
        return _together(gates[:count], min(max(seconds, _SHORTEST), _LONGEST))

    found = figures.in_turns([1, len(gates)], even, once, name=says)
    return {
        "rate": Figure("requests a second in all", "/s", 0, found["rate"]),
        "cpu": Figure("CPU time of their gates for one", "us", 0, found["cpu"]),
        "busy": Figure("cores that the gates had busy", "", 2, found["busy"]),
    }


def _together(gates: Sequence[Gate], seconds: float) -> dict[str, float]:
    """Have all sandboxes make their load in the same seconds.

    CPU time is counted from then on: two sandboxes make twice the connections before it, each for fewer requests. What
    wasn't ready in time counts against it, and ends later; the rate is over all of the time from the first start to the
    last end.
    """
    at = time.monotonic() + _READY
    wish = {"seconds": seconds, "parallel": _PARALLEL, "at": at}
    with ThreadPoolExecutor(len(gates)) as pool:
        asked = [pool.submit(gate.asked.ask, "requests", gate.inspected.tls, **wish) for gate in gates]
        time.sleep(max(at - time.monotonic(), 0))
        before = _spent(gates)
        told = [one.result() for one in asked]
    time.sleep(_SETTLE)
    began = [one["began"] for one in told]
    rate = sum(one["done"] for one in told) / (max(began) - min(began) + seconds)
    cpu = (_spent(gates) - before) / 1e9 / sum(one["all"] - _PARALLEL for one in told)  # each asked once before
    return {"rate": rate, "cpu": cpu * 1e6, "busy": rate * cpu}


def _spent(gates: Sequence[Gate]) -> int:
    """Nanoseconds of CPU time that all of their processes have used."""
    return sum(gate.inspected.spent() for gate in gates)
