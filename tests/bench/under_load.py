"""What is measured with the load client: each function is one measurement over several ways, in turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench import cost, figures
from tests.bench.ask import Asked
from tests.bench.client import Place
from tests.bench.figures import Figure
from tests.bench.peers import Way

_PARALLEL = 8
_SETTLE = 0.05  # seconds that the ends of the last connections may take
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Clients:
    """The two clients, and how long and how often they are asked."""

    outside: Asked
    sandboxed: Asked | None
    rounds: int
    seconds: float

    def of(self, way: Way) -> Asked:
        if not way.sandboxed:
            return self.outside
        assert self.sandboxed is not None
        return self.sandboxed


def connections(clients: Clients, ways: Sequence[Way]) -> dict[str, Figure]:
    """New TLS connections: how many a second, and what one costs the proxy."""
    return _rates(clients, ways, "connections", lambda way: way.tls, "new connections")


def hellos(clients: Clients, ways: Sequence[Way]) -> dict[str, Figure]:
    """The same without the handshake: the proxy is what limits it."""
    return _rates(clients, ways, "hellos", lambda way: way.hello, "connections")


def requests(clients: Clients, ways: Sequence[Way], place: Callable[[Way], Place | None], says: str):
    """Requests on kept connections: how many a second, and what one costs the proxy."""
    return _rates(clients, ways, "requests", place, says)


def _rates(clients: Clients, ways: Sequence[Way], what: str, place: Callable[[Way], Place | None], says: str):
    def once(way: Way) -> dict[str, float]:
        rate, cpu = _measured(clients, way, what, place(way), parallel=_PARALLEL)
        return {"rate": rate, "cpu": cpu * 1e6, "busy": rate * cpu * 100} if way.processes else {"rate": rate}

    found = figures.in_turns(ways, clients.rounds, once)
    return {
        "rate": Figure(f"{says} a second", "/s", 0, found["rate"]),
        "cpu": Figure("CPU time of the proxy for one", "us", 0, found.get("cpu", {})),
        "busy": Figure("the proxy's core was busy", "%", 0, found.get("busy", {})),
    }


def _measured(clients: Clients, way: Way, what: str, place: Place | None, **wish) -> tuple[float, float]:
    """Ask for a load; returns how much was done in a second, and the proxy's CPU seconds for one of it.

    What was done before the clock started and after it stopped costs CPU time too, so that is shared out over all.
    """
    before = way.spent()
    told = clients.of(way).ask(what, place, seconds=clients.seconds, **wish)
    time.sleep(_SETTLE)
    return told["done"] / told["seconds"], (way.spent() - before) / 1e9 / told["all"]


def latency(clients: Clients, ways: Sequence[Way], times: int) -> dict[str, Figure]:
    """How long one client alone waits for a new connection and its first answer."""

    def once(way: Way) -> dict[str, float]:
        each = clients.of(way).ask("latency", way.tls, times=times)["each"]
        return {"p50": median(each) * 1e3}

    found = figures.in_turns(ways, clients.rounds, once)["p50"]
    base = found["direct"]
    added = {name: values.minus(base) for name, values in found.items() if name != "direct"}
    return {
        "p50": Figure("p50 of connect, handshake and first answer", "ms", 2, found),
        "added": Figure("more than direct", "ms", 2, added),
    }


def bulk(clients: Clients, ways: Sequence[Way]) -> dict[str, Figure]:
    """Raw bytes on one connection after its ClientHello."""

    def once(way: Way) -> dict[str, float]:
        rate, cpu = _measured(clients, way, "bulk", way.bulk)
        found = {"rate": rate / _MB}
        return {**found, "cpu": cpu * _MB * 1e6, "busy": rate * cpu * 100} if way.processes else found

    found = figures.in_turns(ways, clients.rounds, once)
    return {
        "rate": Figure("raw bytes on one connection", "MB/s", 0, found["rate"]),
        "cpu": Figure("CPU time of the proxy for 1 MB", "us", 0, found.get("cpu", {})),
        "busy": Figure("the proxy's core was busy", "%", 0, found.get("busy", {})),
    }


def growth(clients: Clients, way: Way, size: int) -> dict[str, Figure]:
    """How much the processes of a way grow at most while one large body passes."""
    found: dict[str, dict[str, figures.Values]] = {"grown": {}, "rate": {}}
    for name, place in (("http", way.http), ("tls", way.tls)):
        before = {pid: cost.resident(pid) for pid in way.processes}
        for pid in way.processes:
            cost.forget_peak(pid)
        told = clients.of(way).ask("download", place, path="/1g")
        grown = sum(max(cost.peak(pid) - before[pid], 0) for pid in way.processes)
        found["grown"][f"{way.name}, {name}"] = figures.Values((grown / _MB,))
        found["rate"][f"{way.name}, {name}"] = figures.Values((size / told["seconds"] / _MB,))
    return {
        "grown": Figure("the proxy's memory grows by at most", "MB", 1, found["grown"]),
        "rate": Figure("one large body", "MB/s", 0, found["rate"]),
    }
