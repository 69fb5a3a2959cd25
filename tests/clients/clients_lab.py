"""A local internet with what real clients talk to, the rules they are under, and how their programs are run there."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.invariants.lab_runner import LIBRARIES, PYTHON, FinishedRun, Journal, LabRunner
from tests.lab import Lab, Name
from tests.lab.certificates import Authority

PROGRAMS = Path(__file__).with_name("programs")
NAMES = {
    "*.open.example": Name.at("93.184.216.10"),
    "read.example": Name.at("93.184.216.11"),
    "forge.example": Name.at("93.184.216.12"),
    "shell.example": Name.at("93.184.216.13"),
    "ws.example": Name.at("93.184.216.14"),
    "rpc.example": Name.at("93.184.216.15"),
    "patient.example": Name.at("93.184.216.16"),
    "**.denied.example": Name.at("93.184.216.17"),
    "pinned.example": Name.at("93.184.216.18"),
}
WEBSOCKET, RPC = 8444, 8445
RULES = f"""
version: 1
name: clients
rules:
  - {{id: open, to: "*.open.example", ports: [443, 80], action: allow}}
  - {{id: read, to: read.example, ports: [443, 80], http: {{methods: [GET, HEAD], paths: ["/files/**", /echo]}}, action: allow}}
  - {{id: forge, to: forge.example, action: allow}}
  - {{id: shell, to: shell.example, ports: [22/tcp], action: allow}}
  - {{id: sockets, to: ws.example, ports: [{WEBSOCKET}/tls], http: {{paths: [/echo], websocket: true}}, action: allow}}
  - {{id: small-sockets, to: ws.example, ports: [{WEBSOCKET}/tls], http: {{paths: [/small], websocket: true}}, limits: {{bytes_down: 64KB}}, action: allow}}
  - {{id: no-sockets, to: ws.example, ports: [{WEBSOCKET}/tls], http: {{paths: [/closed], websocket: false}}, action: allow}}
  - {{id: calls, to: rpc.example, ports: [{RPC}/tls, 8446/tls], http: {{paths: ["/lab.Echo/**"]}}, action: allow}}
  - {{id: limited, to: rpc.example, ports: [{RPC}/tls], http: {{paths: ["/lab.Limited/**"]}}, limits: {{requests: 1}}, action: allow}}
  - {{id: patient, to: patient.example, idle_timeout: 2s, action: allow}}
"""
FORGOTTEN = {"PIP_CONFIG_FILE": "/dev/null", "PYTHONPATH": str(LIBRARIES), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Said:
    """What one program came to."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def ok(self) -> bool:
        return self.status == 0


class ClientsLab:
    """The lab, with servers of our own in it, and sandboxes in which clients run one after another."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.place = LabRunner(lab, Lab.ORDINARY)
        self.files = lab.files
        self.rules = self.place.rules(RULES, "clients.yaml")
        self._runs = 0

    def leaf(self, *names: str) -> Path:
        """A file with a certificate and its key for these names."""
        path = self.lab.directory / f"{names[0]}.pem"
        path.touch(0o600)
        path.write_bytes(Authority.load(self.lab.directory / "ca.key").leaf(*names))
        return path

    def serve(self, module: str, *words: object, port: int) -> subprocess.Popen:
        """Start a server of the tests' own among the origins; it is listening when this returns."""
        argv = [sys.executable, "-m", module, *map(str, words)]
        process = self.lab.start_at_origin(argv, cwd=Path(__file__).resolve().parents[2])
        self.until_listening(process, port)
        return process

    def until_listening(self, process: subprocess.Popen, port: int) -> None:
        """Wait until something among the origins takes connections on a port."""
        ask = f"import socket; socket.create_connection(('93.184.216.10', {port}), 5).close()"
        while self.lab.run([sys.executable, "-c", ask]).returncode:
            assert process.poll() is None, f"the server for port {port} ended with {process.returncode}"
            time.sleep(0.05)

    def run(self, *commands, rules: Path | None = None, read=(), env=None, files=None, root=False) -> "Tried":
        """Run programs one after another in one sandbox; returns what each said, and the journal.

        `root` runs it as root: for programs that no ordinary user can read.
        """
        self._runs += 1
        name = f"clients-{self._runs}"
        place = LabRunner(self.lab, None) if root else self.place
        work = place.workspace(name)
        shutil.copytree(PROGRAMS, work / "programs", ignore=shutil.ignore_patterns("__pycache__"))
        for path, content in (files or {}).items():
            (work / path).write_bytes(content)
        place.workspace(name)  # whose they are now
        options = [word for each in read for word in ("--read", each)]
        options += [word for key, value in {**FORGOTTEN, **(env or {})}.items() for word in ("--env", f"{key}={value}")]
        words = json.dumps([[str(word) for word in command] for command in commands])
        done: FinishedRun = place.run(
            name, rules or self.rules, PYTHON, "-m", "task.programs", words, options=options, timeout=110
        )
        assert done.process.returncode == 0, done.process.stderr
        return Tried([Said(*json.loads(line)) for line in done.process.stdout.splitlines()], done.journal, work)

    def python(self, *programs, **more) -> "Tried":
        """Run programs of `programs/`, each as its name and arguments."""
        return self.run(*([PYTHON, f"programs/{name}.py", *words] for name, *words in programs), **more)


@dataclass(frozen=True)
class Tried:
    """What programs in one sandbox said, in order, and what the gate told of it."""

    said: list[Said]
    journal: Journal
    work: Path

    def decided(self, **wanted) -> list[str]:
        """Every decision on a request, as `outcome reason`."""
        return [f"{one['outcome']} {one['reason']}" for one in self.journal.of(kind="request.decided", **wanted)]
