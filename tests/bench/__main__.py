"""How fast and how small: `python -m tests.bench [--quick] [--only NAME] [--json FILE]`, or `make bench`.

Exeat and its peers do the same job on the same machine in the same minutes; the figures to go by are ratios. See
docs/explanation/benchmarks.md for what is measured and how. Ends by itself and leaves nothing behind.
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

from tests.bench import alone, origin, packages, peers, report, rules, servers, serving, under_load, workers, world
from tests.bench.ask import Asked, AskError
from tests.bench.figures import Findings, Goal, Values
from tests.bench.gate import Gate
from tests.bench.peers import Way
from tests.lab.certificates import Authority

_LONGEST, _LONGEST_QUICK = 900.0, 300.0  # seconds, then it is ended
_REST = 60  # seconds before, in which what is known by then is told
_STREAMS = 100


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how long."""

    rounds: int
    seconds: float
    latencies: int  # connections a round
    starts: int
    bodies: int  # rounds
    idle: int  # connections
    decisions: int  # rounds
    loadings: int  # rounds
    sandboxes: int  # at once
    installs: int  # rounds


FULL = Pace(
    rounds=5, seconds=1.25, latencies=200, starts=11, bodies=2, idle=1000, decisions=5, loadings=3, sandboxes=1000,
    installs=5,
)  # fmt: skip
QUICK = Pace(rounds=3, seconds=0.3, latencies=50, starts=3, bodies=1, idle=200, decisions=3, loadings=1, sandboxes=50,
             installs=1)  # fmt: skip


@dataclass(slots=True)
class Bench:
    """Everything that runs, started when it is first needed."""

    work: Path
    authority: Authority
    pace: Pace
    closing: contextlib.ExitStack
    findings: Findings = field(default_factory=Findings)
    failed: list[str] = field(default_factory=list)  # what could not be measured, and why
    unfetched: dict[str, str] = field(default_factory=dict)  # measurements whose packages can't be had, and why
    _gate: Gate | None = None
    _commands: packages.Commands | None = None
    _outside: Asked | None = None
    _origin: tuple[int, ...] = ()
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

    def origin(self) -> tuple[int, ...]:
        """Start the origin; returns nginx's processes."""
        if not self._origin:
            certificate = self.authority.leaf(world.SPLICED, world.INSPECTED)
            self._origin = origin.start(self.work, certificate, self.closing)
        return self._origin

    def clients(self) -> under_load.Clients:
        """Start both clients, and the origin before them."""
        if self._outside is None:
            self.origin()
            log = self.work / "client.out"
            argv = [os.path.realpath(sys.executable), Path(__file__).with_name("client.py"), servers.CLIENT_CORE]
            pipes = {"stdin": -1, "stdout": -1}
            process = servers.start(argv, core=servers.CLIENT_CORE, log=log, **pipes)
            self.closing.callback(servers.stop, process)
            self._outside = Asked(process, log)
        gate = self.gate()
        return under_load.Clients(self._outside, gate and gate.asked, self.pace.rounds, self.pace.seconds)

    def commands(self) -> packages.Commands:
        """Start what runs commands on both ways, and the origin before it."""
        self.origin()
        if self._commands is None:
            self._commands = packages.Commands(self.work, self.closing)
        return self._commands

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
        wanted = {
            "mitmdump": lambda: peers.mitmdump(self.work, self.ca, self.closing, inspect=True),
            "squid, bumping": lambda: peers.bumping_squid(self.work, self.ca, self._another_ca(), self.closing),
        }
        return [peers.direct(self.ca), *((gate.inspected,) if (gate := self.gate()) else ()), *self._started(wanted)]

    def _another_ca(self) -> bytes:
        """Make a CA for a peer to sign with: key and certificate."""
        file = self.work / "another-ca.pem"
        Authority.make("exeat bench peer's CA").save(file)
        return file.read_bytes()

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

    def compare_records(self, *more: Gate) -> None:
        """See that gates told of all they let through (without `more`, the one that is there for all measurements).

        The price that is measured is that of the whole gate.
        """
        for gate in more or ((self._gate,) if self._gate else ()):
            counted, written = gate.decided()
            said = f"exeat's metrics counted {counted} decisions, its journal has {written}"
            (self.findings.notes if counted == written else self.failed).append(said)

    def hold(self, says: str, found: Values | None, limit: float, **more) -> None:
        """Note a goal, if what it compares with was there."""
        if found is not None:
            self.findings.goals.append(Goal(says, found, limit, **more))


def _over(figure, way: str, other: str) -> Values | None:
    return figure.by_way[way].over(figure.by_way[other]) if {way, other} <= figure.by_way.keys() else None


def _beyond(figure, way: str, other: str) -> Values | None:
    return figure.by_way[way].minus(figure.by_way[other]) if {way, other} <= figure.by_way.keys() else None


def _median(values: Values) -> float:
    return values.median


def connections(bench: Bench) -> None:
    found = under_load.connections(bench.clients(), bench.passing())
    bench.findings.figures["TLS passed through: new connections, 8 at a time"] = list(found.values())
    bench.hold("new connections/s, of direct", _over(found["rate"], "exeat", "direct"), 0.8, at_least=True)
    bench.hold("CPU of a connection, of haproxy's", _over(found["cpu"], "exeat", "haproxy"), 2.0)


def hellos(bench: Bench) -> None:
    found = under_load.hellos(bench.clients(), bench.passing())
    bench.findings.figures["TLS passed through: the proxy alone (a ClientHello and an answer), 8 at a time"] = list(
        found.values()
    )


def telling(bench: Bench) -> None:
    bench.origin()
    with contextlib.ExitStack() as closing:
        told, untold = (
            Gate(bench.work, bench.authority.pem(), closing, number=number, tells=tells)
            for number, tells in ((3, True), (4, False))
        )
        ways = {"exeat": told, "exeat, telling nothing": untold}
        found = under_load.telling(ways, bench.pace.rounds * 2, bench.pace.seconds)
        bench.compare_records(told)
    bench.findings.figures["TLS passed through: what journal and metrics cost"] = list(found.values())
    rate = _over(found["rate"], *ways)
    bench.hold("new connections/s, of those without journal and metrics", rate, 0.9, at_least=True)


def latency(bench: Bench) -> None:
    found = under_load.latency(bench.clients(), bench.passing(), bench.pace.latencies)
    bench.findings.figures["TLS passed through: a new connection, one at a time"] = list(found.values())
    added = _beyond(found["added"], "exeat", "haproxy")
    bench.hold("p50 added to a new connection, beyond haproxy's", added, 0.25, unit="ms")


def bulk(bench: Bench) -> None:
    found = under_load.bulk(bench.clients(), bench.passing())
    bench.findings.figures["TLS passed through: bulk"] = list(found.values())
    bench.hold("raw bulk, of haproxy with splice", _over(found["rate"], "exeat", "haproxy, splice"), 1.2, at_least=True)


def http(bench: Bench) -> None:
    found = under_load.requests(bench.clients(), bench.inspecting(), lambda way: way.http, "requests")
    bench.findings.figures["HTTP inspected: kept connections, 8 at a time"] = list(found.values())
    bench.hold("HTTP requests/s, of mitmdump's", _over(found["rate"], "exeat", "mitmdump"), 2.5, at_least=True)


def tls(bench: Bench) -> None:
    found = under_load.requests(bench.clients(), bench.inspecting(), lambda way: way.tls, "requests")
    bench.findings.figures["TLS inspected: kept connections, 8 at a time"] = list(found.values())
    bench.hold("TLS requests/s, of mitmdump's", _over(found["rate"], "exeat", "mitmdump"), 2.5, at_least=True)
    bench.hold("TLS requests/s", found["rate"].by_way.get("exeat"), 6000, unit="/s", at_least=True)
    bench.hold("CPU of an inspected TLS request, of squid's", _over(found["cpu"], "exeat", "squid, bumping"), 1.5)


def beside(bench: Bench) -> None:
    pace = bench.pace
    with contextlib.ExitStack() as closing:  # not to the end: nothing else is measured with others beside it
        closing.enter_context(servers.on_any_core(bench.origin(), servers.CLIENT_CORE))
        gates = [Gate(bench.work, bench.authority.pem(), closing, number=number, pinned=False) for number in (1, 2)]
        found = workers.requests(gates, pace.rounds, pace.seconds)
        bench.compare_records(*gates)
    bench.findings.figures["TLS inspected: kept connections, 8 at a time in each sandbox"] = list(found.values())
    one, two = (workers.says(count) for count in (1, 2))
    bench.hold("requests/s of two sandboxes at once, of one's", _over(found["rate"], two, one), 1, at_least=True)
    bench.hold("CPU of a request with two sandboxes at once, of one's", _over(found["cpu"], two, one), 1.15)


def inspected_connections(bench: Bench) -> None:
    found = under_load.connections(bench.clients(), bench.inspecting())
    bench.findings.figures["TLS inspected: new connections, 8 at a time"] = list(found.values())
    for peer, faster, cheaper in (("mitmdump", 2.5, 0.4), ("squid, bumping", 1.5, 0.7)):
        rate, cpu = _over(found["rate"], "exeat", peer), _over(found["cpu"], "exeat", peer)
        bench.hold(f"inspected TLS connections/s, of those of {peer}", rate, faster, at_least=True)
        bench.hold(f"CPU of an inspected TLS connection, of that of {peer}", cpu, cheaper)


def waits(bench: Bench) -> None:
    found = under_load.waits(bench.clients(), bench.inspecting(), bench.pace.latencies)
    bench.findings.figures["TLS inspected: a request on a kept connection, one at a time"] = list(found.values())
    added = _beyond(found["added"], "exeat", "squid, bumping")
    bench.hold("p50 added to an inspected request, beyond squid's", added, 0.15, unit="ms")


def streams(bench: Bench) -> None:
    ways = [way for way in bench.inspecting() if way.name != "mitmdump"]  # which keeps a body until all of it is there
    found = under_load.streams(bench.clients(), ways, _STREAMS)
    bench.findings.figures[f"TLS inspected: {_STREAMS} streams of events"] = list(found.values())
    bench.hold(f"p99 added to {_STREAMS} streams", found["added"].by_way.get("exeat"), 5, unit="ms")


def idle(bench: Bench) -> None:
    found = under_load.idle(bench.clients(), bench.inspecting(), bench.pace.idle)
    bench.findings.figures["TLS inspected: idle connections"] = list(found.values())
    bench.hold("memory of an idle inspected connection", found["each"].by_way.get("exeat"), 65, unit="KB")


def memory(bench: Bench) -> None:
    clients, gate = bench.clients(), bench.gate()
    if gate is None:
        return
    ways = [way for way in bench.inspecting() if way.name != "mitmdump"]  # which keeps a body until all of it is there
    found = under_load.large(clients, ways, origin.BODY, bench.pace.bodies)
    bench.findings.figures["inspected: a body of 1 GB"] = list(found.values())
    rates = found["rate"].by_way
    for kind in ("http", "tls"):
        name = f"exeat, {kind}"
        bench.hold(f"memory grown by a body of 1 GB ({name})", found["grown"].by_way[name], 50, unit="MB")
        slower = min((values for way, values in rates.items() if way.endswith(kind) and way != name), key=_median)
        says = f"a body of 1 GB ({name}), of the slower of direct and squid"
        bench.hold(says, rates[name].over(slower), 0.8, at_least=True)


def decide(bench: Bench) -> None:
    found = rules.decide(bench.pace.decisions)
    bench.findings.figures["one decision"] = list(found.values())
    slowest = max(found["decide"].by_way.values(), key=_median)
    bench.hold("the slowest decide() at 100,000 rules and 1,000,000 listed names", slowest, 6, unit="us")


def loading(bench: Bench) -> None:
    found = rules.loading(bench.work, bench.pace.loadings)
    bench.findings.figures["loading rules"] = list(found.values())
    check, _, listed = found["seconds"].by_way
    bench.hold(check, found["seconds"].by_way[check], 1, unit="s")
    bench.hold(listed, found["seconds"].by_way[listed], 3, unit="s")
    bench.hold(f"{listed}: memory", found["most"].by_way[listed], 200, unit="MB")


def reloading(bench: Bench) -> None:
    found = rules.reloading(bench.work, bench.pace.loadings)
    bench.findings.figures["other rules come into force"] = list(found.values())
    waits = found["wait"].by_way
    bench.hold("the gate waits for a reload", waits["reloading"], 5, unit="ms")
    bench.hold("the gate waits for a reload on a busy machine", waits["reloading, busy"], 10, unit="ms")


def start(bench: Bench) -> None:
    found = world.as_found(lambda: alone.start(bench.work, bench.pace.starts))
    bench.findings.figures["starting a task"] = list(found.values())
    bench.hold("exeat run -- true", found["start"].by_way["exeat run -- true"], 250, unit="ms")


def served(bench: Bench) -> None:
    found = world.as_found(lambda: serving.start(bench.work, bench.pace.starts))
    bench.findings.figures["starting a task in the service"] = list(found.values())
    ours, theirs = found["start"].by_way.values()
    bench.hold("exeat run -- true in the service", ours, 50, unit="ms")
    bench.hold("exeat run -- true in the service, of bwrap --unshare-all", ours.over(theirs), 6)


def many(bench: Bench) -> None:
    found = world.as_found(lambda: serving.many(bench.work, bench.pace.sandboxes))
    bench.findings.figures["sandboxes at once"] = list(found.values())
    for name, limit, unit, at_least in (("rate", 50, "/s", True), ("each", 1500, "KB", False)):
        for way, values in found[name].by_way.items():
            bench.hold(f"{way}: {found[name].says}", values, limit, unit=unit, at_least=at_least)


def _installing(name: str, says: str, command, limit: float) -> Callable[[Bench], None]:
    def measure(bench: Bench) -> None:
        if name in bench.unfetched:
            bench.findings.notes.append(f"{name} is left out: {bench.unfetched[name]}")
            return
        commands = bench.commands()
        argv, environment = command()
        with servers.on_any_core(bench.origin(), servers.CLIENT_CORE):
            found = commands.times(argv, bench.pace.installs, environment)
        bench.findings.figures[says] = list(found.values())
        bench.hold(f"{says}, of the time without a sandbox", _over(found["took"], "exeat", "direct"), limit)

    return measure


MEASUREMENTS: dict[str, Callable[[Bench], None]] = {
    "connections": connections,
    "hellos": hellos,
    "telling": telling,
    "latency": latency,
    "bulk": bulk,
    "http": http,
    "tls": tls,
    "workers": beside,
    "inspected-connections": inspected_connections,
    "idle": idle,  # before there were many connections: an allocator keeps what they had
    "waits": waits,
    "streams": streams,
    "memory": memory,
    "npm-install": _installing("npm-install", "npm install of some 130 packages", packages.npm_install, 1.1),
    "pip-download": _installing("pip-download", "pip download of 20 wheels", packages.pip_download, 1.05),
    "git-clone": _installing("git-clone", "a shallow git clone of 50 MB", packages.git_clone, 1.05),
    "decide": decide,
    "loading": loading,
    "reloading": reloading,
    "start": start,
    "served": served,
    "many": many,
}


def main() -> int:
    """Measure in a world of its own, then clean up."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under three minutes, and rougher")
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
    unfetched = packages.fetch([name for name in arguments.only or MEASUREMENTS if name in packages.FETCHED])
    work = Path(tempfile.mkdtemp(prefix="exeat-bench-"))
    work.chmod(0o755)
    try:
        longest = _LONGEST_QUICK if arguments.quick else _LONGEST
        status = world.inside(
            lambda: _measure(work, arguments, unfetched, result, int(longest) - _REST), seconds=longest
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if status == world.LATE:
        print(f"bench: not done after {longest:.0f} seconds, and ended", file=sys.stderr)
    return status


class _LateError(Exception):
    """It has taken too long."""


def _be_late(*_: object) -> None:
    raise _LateError


def _measure(
    work: Path, arguments: argparse.Namespace, unfetched: dict[str, str], result: Path | None, seconds: int
) -> int:
    authority = Authority.make("exeat bench CA")
    (work / "ca.pem").write_bytes(authority.pem())
    world.furnish(work, authority.pem())
    world.redirect(peers.REDIRECTS)
    with contextlib.ExitStack() as closing:
        bench = Bench(work, authority, QUICK if arguments.quick else FULL, closing, unfetched=unfetched)
        signal.signal(signal.SIGALRM, _be_late)
        signal.alarm(seconds)
        name = ""
        try:
            for name in arguments.only or MEASUREMENTS:
                print(f"bench: {name}", file=sys.stderr, flush=True)
                try:
                    MEASUREMENTS[name](bench)
                except (AskError, servers.MissingError, RuntimeError) as error:
                    bench.failed.append(f"{name} was not measured: {error}")
        except _LateError:
            bench.failed.append(f"{name}, and whatever comes after it, was not measured: {seconds} seconds were over")
        signal.alarm(0)
        bench.compare_records()
        bench.findings.notes += bench.failed
    print(report.table(bench.findings))
    if result:
        result.write_text(report.as_json(bench.findings, {"quick": arguments.quick}) + "\n")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
