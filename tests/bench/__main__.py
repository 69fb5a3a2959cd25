"""How fast and how small: `python -m tests.bench [--quick] [--only NAME] [--json FILE]`, or `make bench`.

Exeat and its peers do the same job on the same machine in the same minutes; the figures to go by are ratios. See
docs/benchmarks.md for what is measured and how. Ends by itself and leaves nothing behind.
"""

import argparse
import compileall
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import alone, origin, peers, report, servers, under_load, world
from tests.bench.ask import Asked, AskError
from tests.bench.figures import Findings, Goal, Values
from tests.bench.gate import Gate
from tests.bench.peers import Way
from tests.lab.certificates import Authority

_LONGEST, _LONGEST_QUICK = 350.0, 58.0  # seconds, then it is ended


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how long."""

    rounds: int
    seconds: float
    latencies: int  # connections a round
    starts: int
    decisions: int  # rounds


FULL = Pace(rounds=5, seconds=1.25, latencies=200, starts=11, decisions=5)
QUICK = Pace(rounds=3, seconds=0.3, latencies=50, starts=3, decisions=3)


@dataclass(slots=True)
class Bench:
    """Everything that runs, started when it is first needed."""

    work: Path
    authority: Authority
    pace: Pace
    closing: contextlib.ExitStack
    findings: Findings = field(default_factory=Findings)
    failed: list[str] = field(default_factory=list)  # what could not be measured, and why
    _gate: Gate | None = None
    _outside: Asked | None = None
    _ways: dict[str, Way | None] = field(default_factory=dict)  # None: it could not be started

    @property
    def ca(self) -> str:
        return str(self.work / "ca.pem")

    def gate(self) -> Gate | None:
        """The gate, or None where it doesn't run: then the peers are measured alone."""
        if self._gate is None and not self.failed:
            try:
                self._gate = Gate(self.work, self.authority.pem(), self.closing)
            except (AskError, RuntimeError, OSError) as error:
                self.failed.append(f"exeat was not measured: {error}")
        return self._gate

    def clients(self) -> under_load.Clients:
        """Start both clients, and the origin before them."""
        if self._outside is None:
            origin.start(self.work, self.authority.leaf(world.SPLICED, world.INSPECTED), self.closing)
            log = self.work / "client.out"
            argv = [os.path.realpath(sys.executable), Path(__file__).with_name("client.py"), servers.CLIENT_CORE]
            pipes = {"stdin": -1, "stdout": -1}
            process = servers.start(argv, core=servers.CLIENT_CORE, log=log, **pipes)
            self.closing.callback(servers.stop, process)
            self._outside = Asked(process, log)
        gate = self.gate()
        return under_load.Clients(self._outside, gate and gate.asked, self.pace.rounds, self.pace.seconds)

    def passing(self) -> list[Way]:
        """Every way on which TLS is passed through."""
        wanted = {
            "haproxy": lambda: peers.haproxy(self.work, self.ca, self.closing, splice=False),
            "haproxy, splice": lambda: peers.haproxy(self.work, self.ca, self.closing, splice=True),
            "squid": lambda: peers.squid(self.work, self.ca, self.authority.leaf("squid.bench.test"), self.closing),
            "mitmdump, ignoring": lambda: peers.mitmdump(self.work, self.ca, self.closing, inspect=False),
        }
        return [peers.direct(self.ca), *((gate.spliced,) if (gate := self.gate()) else ()), *self._started(wanted)]

    def inspecting(self) -> list[Way]:
        """Every way on which requests are read."""
        wanted = {"mitmdump": lambda: peers.mitmdump(self.work, self.ca, self.closing, inspect=True)}
        return [peers.direct(self.ca), *((gate.inspected,) if (gate := self.gate()) else ()), *self._started(wanted)]

    def _started(self, wanted: dict[str, Callable[[], Way]]) -> list[Way]:
        for name, begin in wanted.items():
            if name in self._ways:
                continue
            try:
                self._ways[name] = begin()
            except servers.MissingError as error:
                self._ways[name] = None
                self.findings.notes.append(f"{name} is left out: {error}")
        return [way for name in wanted if (way := self._ways[name]) is not None]

    def compare_records(self) -> None:
        """See that the gate told of all it let through: the price that is measured is that of the whole gate."""
        if self._gate is not None:
            counted, written = self._gate.decided()
            said = f"exeat's metrics counted {counted} decisions, its journal has {written}"
            (self.findings.notes if counted == written else self.failed).append(said)

    def hold(self, says: str, found: Values | None, limit: float, **more) -> None:
        """Note a goal, if what it compares with was there."""
        if found is not None:
            self.findings.goals.append(Goal(says, found, limit, **more))


def _over(figure, way: str, other: str) -> Values | None:
    return figure.by_way[way].over(figure.by_way[other]) if {way, other} <= figure.by_way.keys() else None


def connections(bench: Bench) -> None:
    found = under_load.connections(bench.clients(), bench.passing())
    bench.findings.figures["TLS passed through: new connections, 8 at a time"] = list(found.values())
    bench.hold("new connections/s, of direct", _over(found["rate"], "exeat", "direct"), 0.9, at_least=True)
    bench.hold("CPU of a connection, of haproxy's", _over(found["cpu"], "exeat", "haproxy"), 1.3)


def hellos(bench: Bench) -> None:
    found = under_load.hellos(bench.clients(), bench.passing())
    bench.findings.figures["TLS passed through: the proxy alone (a ClientHello and an answer), 8 at a time"] = list(
        found.values()
    )


def latency(bench: Bench) -> None:
    found = under_load.latency(bench.clients(), bench.passing(), bench.pace.latencies)
    bench.findings.figures["TLS passed through: a new connection, one at a time"] = list(found.values())
    bench.hold("p50 added to a new connection", found["added"].by_way.get("exeat"), 0.5, unit="ms")


def bulk(bench: Bench) -> None:
    found = under_load.bulk(bench.clients(), bench.passing())
    bench.findings.figures["TLS passed through: bulk"] = list(found.values())
    bench.hold("raw bulk, of haproxy with splice", _over(found["rate"], "exeat", "haproxy, splice"), 1.2, at_least=True)


def http(bench: Bench) -> None:
    found = under_load.requests(bench.clients(), bench.inspecting(), lambda way: way.http, "requests")
    bench.findings.figures["HTTP inspected: kept connections, 8 at a time"] = list(found.values())
    bench.hold("HTTP requests/s, of mitmdump's", _over(found["rate"], "exeat", "mitmdump"), 1.6, at_least=True)


def tls(bench: Bench) -> None:
    found = under_load.requests(bench.clients(), bench.inspecting(), lambda way: way.tls, "requests")
    bench.findings.figures["TLS inspected: kept connections, 8 at a time"] = list(found.values())
    bench.hold("TLS requests/s, of mitmdump's", _over(found["rate"], "exeat", "mitmdump"), 1.6, at_least=True)


def inspected_connections(bench: Bench) -> None:
    found = under_load.connections(bench.clients(), bench.inspecting())
    bench.findings.figures["TLS inspected: new connections, 8 at a time"] = list(found.values())
    bench.hold(
        "inspected TLS connections/s, of mitmdump's", _over(found["rate"], "exeat", "mitmdump"), 1.8, at_least=True
    )


def memory(bench: Bench) -> None:
    clients, gate = bench.clients(), bench.gate()
    if gate is None:
        return
    found = under_load.growth(clients, gate.inspected, origin.BODY)
    bench.findings.figures["inspected: a body of 1 GB"] = list(found.values())
    for name, values in found["grown"].by_way.items():
        bench.hold(f"memory grown by a body of 1 GB ({name})", values, 50, unit="MB")


def decide(bench: Bench) -> None:
    found = alone.decide(bench.pace.decisions)
    bench.findings.figures["one decision"] = list(found.values())
    slowest = max(found["decide"].by_way.values(), key=lambda values: values.median)
    bench.hold("the slowest decide() at 100,000 rules", slowest, 5, unit="us")


def start(bench: Bench) -> None:
    found = alone.start(bench.work, bench.pace.starts)
    bench.findings.figures["starting a task"] = list(found.values())
    bench.hold("exeat run -- true", found["start"].by_way["exeat run -- true"], 250, unit="ms")


MEASUREMENTS: dict[str, Callable[[Bench], None]] = {
    "connections": connections,
    "hellos": hellos,
    "latency": latency,
    "bulk": bulk,
    "http": http,
    "tls": tls,
    "inspected-connections": inspected_connections,
    "memory": memory,
    "decide": decide,
    "start": start,
}


def main() -> int:
    """Measure in a world of its own, then clean up."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, and rougher")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every value")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: it makes network namespaces and starts servers in them; run it as root", file=sys.stderr)
        return 2
    result = arguments.json.absolute() if arguments.json else None
    for name in ("rules", "proxy", "enforcer"):  # as an installation does; a sandbox's worker couldn't keep it
        compileall.compile_dir(name, quiet=2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is made is taken down
    work = Path(tempfile.mkdtemp(prefix="exeat-bench-"))
    work.chmod(0o755)
    try:
        longest = _LONGEST_QUICK if arguments.quick else _LONGEST
        status = world.inside(lambda: _measure(work, arguments, result), seconds=longest)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if status == world.LATE:
        print(f"bench: not done after {longest:.0f} seconds, and ended", file=sys.stderr)
    return status


def _measure(work: Path, arguments: argparse.Namespace, result: Path | None) -> int:
    authority = Authority.make("exeat bench CA")
    (work / "ca.pem").write_bytes(authority.pem())
    world.furnish(work, authority.pem())
    world.redirect(peers.REDIRECTS)
    with contextlib.ExitStack() as closing:
        bench = Bench(work, authority, QUICK if arguments.quick else FULL, closing)
        for name in arguments.only or MEASUREMENTS:
            print(f"bench: {name}", file=sys.stderr, flush=True)
            try:
                MEASUREMENTS[name](bench)
            except (AskError, servers.MissingError, RuntimeError) as error:
                bench.failed.append(f"{name} was not measured: {error}")
        bench.compare_records()
        bench.findings.notes += bench.failed
    print(report.table(bench.findings))
    if result:
        result.write_text(report.as_json(bench.findings, {"quick": arguments.quick}) + "\n")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
