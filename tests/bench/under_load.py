"""What is measured with the load client: each function is one measurement over several ways, in turns."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench import cost, figures
from tests.bench.ask import Asked, AskError
from tests.bench.client import Place
from tests.bench.figures import Figure
from tests.bench.gate import Gate
from tests.bench.peers import Way

_PARALLEL = 8
_SETTLE = 0.05  # seconds that the ends of the last connections may take
_CLOSED = 0.5  # seconds that the ends of a thousand may take
_WARM = 10  # connections, after which what is made once is there
_LONG_ENOUGH = 0.5  # seconds of streams
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


def telling(gates: Mapping[str, Gate], rounds: int, seconds: float) -> dict[str, Figure]:
    """New TLS connections through gates that tell of them and gates that don't, by their names."""

    def once(name: str) -> dict[str, float]:
        gate = gates[name]
        clients = Clients(gate.asked, gate.asked, rounds, seconds)
        rate, cpu = _measured(clients, gate.spliced, "connections", gate.spliced.tls, parallel=_PARALLEL)
        return {"rate": rate, "cpu": cpu * 1e6}

    found = figures.in_turns(list(gates), rounds, once, name=str)
    return {
        "rate": Figure("new connections a second", "/s", 0, found["rate"]),
        "cpu": Figure("CPU time of the gate for one", "us", 0, found["cpu"]),
    }


def requests(clients: Clients, ways: Sequence[Way], place: Callable[[Way], Place | None], says: str):
    """Requests on kept connections: how many a second, and what one costs the proxy."""
    return _rates(clients, ways, "requests", place, says)


def _rates(clients: Clients, ways: Sequence[Way], what: str, place: Callable[[Way], Place | None], says: str):
    def once(way: Way) -> dict[str, float]:
        rate, cpu = _measured(clients, way, what, place(way), parallel=_PARALLEL)
        return {"rate": rate, "cpu": cpu * 1e6, "busy": rate * cpu * 100} if way.processes else {"rate": rate}

    found = figures.in_turns([way for way in ways if place(way) is not None], clients.rounds, once)
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
    try:
        told = clients.of(way).ask(what, place, seconds=clients.seconds, **wish)
    except AskError as error:
        raise AskError(f"{way.name}: {error}") from error
    time.sleep(_SETTLE)
    return told["done"] / told["seconds"], (way.spent() - before) / 1e9 / told["all"]


def latency(clients: Clients, ways: Sequence[Way], times: int) -> dict[str, Figure]:
    """How long one client alone waits for a new connection and its first answer."""

    def once(way: Way) -> dict[str, float]:
        each = clients.of(way).ask("latency", way.tls, times=times)["each"]
        return {"p50": median(each) * 1e3}

    found = figures.in_turns(ways, clients.rounds, once)["p50"]
    return {
        "p50": Figure("p50 of connect, handshake and first answer", "ms", 2, found),
        "added": Figure("more than direct", "ms", 2, _more_than_direct(found)),
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


def waits(clients: Clients, ways: Sequence[Way], times: int) -> dict[str, Figure]:
    """How long one client alone waits for each answer on an inspected connection that is kept."""

    def once(way: Way) -> dict[str, float]:
        each = clients.of(way).ask("waits", way.tls, times=times)["each"]
        return {"p50": median(each) * 1e3}

    found = figures.in_turns(ways, clients.rounds, once)["p50"]
    return {
        "p50": Figure("p50 of a request and its answer", "ms", 2, found),
        "added": Figure("more than direct", "ms", 2, _more_than_direct(found)),
    }


def streams(clients: Clients, ways: Sequence[Way], parallel: int) -> dict[str, Figure]:
    """How late the events of many streams come that are open at the same time."""

    def once(way: Way) -> dict[str, float]:
        wish = {"path": "/events", "parallel": parallel, "seconds": max(clients.seconds, _LONG_ENOUGH)}
        each = sorted(clients.of(way).ask("streams", way.tls, **wish)["each"])
        return {"p50": median(each) * 1e3, "p99": each[len(each) * 99 // 100] * 1e3}

    found = figures.in_turns(ways, clients.rounds, once)
    return {
        "p50": Figure("p50 from sent to read", "ms", 2, found["p50"]),
        "p99": Figure("p99", "ms", 2, found["p99"]),
        "added": Figure("p99 more than direct", "ms", 2, _more_than_direct(found["p99"])),
    }


def idle(clients: Clients, ways: Sequence[Way], count: int) -> dict[str, Figure]:
    """How much memory connections take that are kept open, each after one request."""

    def once(way: Way) -> dict[str, float]:
        client = clients.of(way)
        client.ask("hold", way.tls, count=_WARM)
        client.ask("release")
        time.sleep(_CLOSED)
        before = sum(map(cost.resident, way.processes))
        client.ask("hold", way.tls, count=count)
        time.sleep(_SETTLE)
        grown = sum(map(cost.resident, way.processes)) - before
        client.ask("release")
        time.sleep(_CLOSED)
        return {"grown": grown / _MB}

    # Once: an allocator keeps what it was given, and a second time would take that again.
    found = figures.in_turns([way for way in ways if way.processes], 1, once)["grown"]
    return {
        "grown": Figure(f"memory taken by {count:,} connections", "MB", 1, found),
        "each": Figure("by one", "KB", 1, {name: values.times(1e3 / count) for name, values in found.items()}),
    }


def _more_than_direct(found: Mapping[str, figures.Values]) -> dict[str, figures.Values]:
    return {name: values.minus(found["direct"]) for name, values in found.items() if name != "direct"}


def large(clients: Clients, ways: Sequence[Way], size: int, rounds: int) -> dict[str, Figure]:
    """How fast one large body passes, and how much the processes of a way grow at most meanwhile."""

    def once(one: tuple[Way, str]) -> dict[str, float]:
        way, kind = one
        before = {pid: cost.resident(pid) for pid in way.processes}
        for pid in way.processes:
            cost.forget_peak(pid)
        spent = way.spent()
        told = clients.of(way).ask("download", getattr(way, kind), path="/1g")
        rate = {"rate": size / told["seconds"] / _MB}
        if not way.processes:
            return rate
        grown = sum(max(cost.peak(pid) - before[pid], 0) for pid in way.processes)
        return {**rate, "grown": grown / _MB, "cpu": (way.spent() - spent) / 1e3 / (size / _MB)}

    both = [(way, kind) for way in ways for kind in ("http", "tls") if getattr(way, kind) is not None]
    found = figures.in_turns(both, rounds, once, name=lambda one: f"{one[0].name}, {one[1]}")
    return {
        "rate": Figure("one large body", "MB/s", 0, found["rate"]),
        "cpu": Figure("CPU time of the proxy for 1 MB", "us", 0, found.get("cpu", {})),
        "grown": Figure("the proxy's memory grows by at most", "MB", 1, found.get("grown", {})),
    }
