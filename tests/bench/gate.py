"""Exeat as it is used: `exeat run`, with journal and metrics, and the load as its task."""

import contextlib
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.bench import cost, servers, world
from tests.bench.ask import Asked
from tests.bench.client import Place
from tests.bench.peers import Way

_METRICS = 9464  # and the next ones, for more gates
_DECIDED = b'.decided","verdict":'
_RULES = """
version: 1
name: bench
rules:
  - id: passed-on
    to: {spliced}
    resolves_to: [{origin}/32]
    ports: [{tls}/tls, {bulk}/tls, {hello}/tls]
    tls: splice
    action: allow
    why: what the bench passes through
  - id: looked-into
    to: {inspected}
    resolves_to: [{origin}/32]
    ports: [{tls}/tls, {http}/http]
    http: {{methods: [GET, HEAD], paths: ["/**"]}}
    action: allow
    why: what the bench inspects
"""


class Gate:
    """A running `exeat run` whose task is the client."""

    def __init__(
        self,
        work: Path,
        ca: bytes,
        closing: contextlib.ExitStack,
        *,
        number: int = 0,
        pinned: bool = True,
        tells: bool = True,
    ) -> None:
        """Start it. `number` tells several apart; one that isn't `pinned` may run on any core, its task too.

        One that doesn't `tell` has no events: nothing that can be configured, and no gate to use.
        """
        home = work / f"gate-{number}"
        workspace = home / "task"
        workspace.mkdir(parents=True)
        workspace.chmod(0o755)
        (workspace / "ca.pem").write_bytes(ca)
        (workspace / "client.py").write_bytes(Path(__file__).with_name("client.py").read_bytes())
        self._journal, self._metrics = home / "journal", f"127.0.0.1:{_METRICS + number}"
        log = home / "exeat.out"
        python = os.path.realpath(sys.executable)
        options = ["--rules", rules(home), "--workspace", workspace, "--read", sys.base_prefix, "--quiet"]
        options += ["--journal", self._journal, "--metrics", self._metrics, "--task", f"bench-{number}"]
        client = ["client.py", *([servers.CLIENT_CORE] if pinned else [])]
        command = exeat("run", *options, "--", python, *client)
        if not tells:
            command[:1] = [sys.executable, "-P", str(Path(__file__).with_name("untold.py"))]
        process = servers.start(
            command,
            core=servers.PROXY_CORE if pinned else None,
            log=log,
            cwd=workspace,
            env={**os.environ, "XDG_STATE_HOME": str(work / "state"), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        closing.callback(servers.stop, process)
        self.asked = Asked(process, log)
        self.asked.ask("lookups", name=world.SPLICED, times=1)  # it runs
        self.processes = cost.family(process.pid)
        passed = f"{workspace}/ca.pem"
        self.spliced = Way(
            "exeat",
            Place(world.SPLICED, world.TLS, ca=passed),
            bulk=Place(world.SPLICED, world.BULK, ca=passed),
            hello=Place(world.SPLICED, world.HELLO, ca=passed),
            processes=self.processes,
            sandboxed=True,
        )
        self.inspected = Way(
            "exeat",
            Place(world.INSPECTED, world.TLS),
            Place(world.INSPECTED, world.HTTP, tls=False),
            processes=self.processes,
            sandboxed=True,
        )

    def decided(self) -> tuple[int, int]:
        """How many decisions its metrics and its journal tell of: the proof that the load went through both."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        counted = sum(float(line.split()[-1]) for line in lines if line.startswith("exeat_decisions_total{"))
        written = sum(path.read_bytes().count(_DECIDED) for path in self._journal.glob("*/*.jsonl"))
        return int(counted), written


def rules(work: Path) -> Path:
    """Write the bench's rule file."""
    path = work / "bench.yaml"
    path.write_text(
        _RULES.format(
            spliced=world.SPLICED,
            inspected=world.INSPECTED,
            origin=world.ORIGIN,
            tls=world.TLS,
            http=world.HTTP,
            bulk=world.BULK,
            hello=world.HELLO,
        )
    )
    return path


def exeat(*words) -> list[str]:
    """The words of a command, by the environment that the bench runs in."""
    return [str(Path(sys.executable).with_name("exeat")), *map(str, words)]
