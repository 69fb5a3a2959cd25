"""The lab: a context manager that runs programs on its host side and returns the records of its origins.

with Lab({"good.example": Name.at("93.184.216.34", "2606:2800:220:1::1")}) as lab:
    done = lab.run(["curl", "-sS", "https://good.example/echo"], user=lab.ORDINARY)
    assert lab.origin.requests()[0]["authority"] == "good.example"
    assert lab.origin.packets_to("1.1.1.1") == 0
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.waiting import readable

from . import git_server
from .names import Name

_PROJECT = Path(__file__).resolve().parents[2]
_PATIENCE = 30.0  # seconds until the lab must be ready
_LONGEST_RUN = 60.0


class Packets(NamedTuple):
    """Number of packets to one destination, protocol and port."""

    destination: str
    protocol: int  # IANA's number
    port: int  # 0 where the protocol has none
    times: int


class LabError(RuntimeError):
    """The lab could not be started, or an origin failed to execute a command."""


class OriginRecords:
    """Reads the records of one origin process, and changes the names that it serves."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def queries(self, name: str = "") -> list[tuple[str, str, str]]:
        """Return (name, type, udp or tcp) of every DNS query, or of those for one name, in order."""
        return [
            (queried, kind, how) for queried, kind, how, *_ in self._command(what="queries") if name in {"", queried}
        ]

    def requests(self) -> list[dict]:
        """Return every HTTP request: method, target, authority, version, sni, destination, client."""
        return self._command(what="requests")

    def connections(self) -> list[dict]:
        """Return every TCP connection a service accepted (after its TLS handshake): destination, client, tls, sni."""
        return self._command(what="connections")

    def datagrams(self) -> list[dict]:
        """Return every datagram the UDP sinks took: port, client, size."""
        return self._command(what="datagrams")

    def packets(self) -> list[Packets]:
        """Return how many packets of any kind arrived, by destination, protocol and port. Raises if any was lost."""
        return [Packets(*one) for one in self._command(what="packets")]

    def packets_to(self, *addresses: str) -> int:
        """Return how many packets arrived for these addresses."""
        return sum(one.times for one in self.packets() if one.destination in addresses)

    def name(self, names: Mapping[str, Name]) -> None:
        """Replace all DNS names."""
        self._command(what="name", names={name: value.to_json() for name, value in names.items()})

    def forget(self) -> None:
        """Clear all records; rebinding names start from their first address."""
        self._command(what="forget")

    def _command(self, **command):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(str(self._path))
            sock.sendall(json.dumps(command).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        if "error" in answer:
            raise LabError(answer["error"])
        return answer["answer"]


class Lab:
    """A local internet. Needs root to start; programs in it run as any user."""

    ORDINARY = 64321  # an ordinary uid and gid that no account has

    def __init__(
        self,
        names: Mapping[str, Name],
        *,
        hosts: Mapping[str, str] | None = None,  # the host side's /etc/hosts: name to addresses, separated by spaces
        https: Sequence[int] = (443, 8443),
        http: Sequence[int] = (80, 8080),
        speaking: Sequence[int] = (22, 5432),  # TCP services that speak first, then echo
        udp: Sequence[int] = (443, 9999),
    ) -> None:
        self._settings = {
            "names": {name: value.to_json() for name, value in names.items()},
            "hosts": dict(hosts or {}),
            "https": https,
            "http": http,
            "speaking": speaking,
            "udp": udp,
        }
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise LabError("the lab needs root: it makes network namespaces that reach each other")
        with contextlib.ExitStack() as opened:
            self.directory = Path(tempfile.mkdtemp(prefix="lab-"))
            opened.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.directory.chmod(0o755)
            (self.directory / "git").mkdir()
            self.files = self.directory / "files"  # served at https://ANY NAME/files/
            self.files.mkdir()
            self._process = self._start()
            opened.callback(self._end)
            self._pids = json.loads(self._first_line())
            self.ca = self.directory / "ca.pem"
            self.origin, self.loopback = (
                OriginRecords(self.directory / f"{role}.sock") for role in ("origin", "loopback")
            )
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def run(
        self, argv: Sequence[str | os.PathLike], *, user: int | None = None, timeout: float = _LONGEST_RUN, **more
    ) -> subprocess.CompletedProcess:
        """Run a program on the host side to its end; `user` None is root. Output is captured as text by default.

        `env` is added to a small environment (PATH with the project's commands, HOME, LANG); `cwd` is HOME unless
        given. A program that takes longer is killed, with everything in its process group.
        """
        given = more.pop("input", None)
        streams = {
            "stdin": subprocess.DEVNULL if given is None else subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        with self.start(argv, user=user, **{**streams, **more}) as process:
            try:
                out, err = process.communicate(given, timeout)
            except subprocess.TimeoutExpired as error:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                raise subprocess.TimeoutExpired(argv, timeout, out, err) from error
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def start(
        self,
        argv: Sequence[str | os.PathLike],
        *,
        user: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        **more,
    ) -> subprocess.Popen:
        """Start a program on the host side in its own session; it is killed when this process ends."""
        view = self._pids["root" if user is None else "everybody"]
        home = self.home(user)
        enter = ["nsenter", f"--net=/proc/{self._pids['root']}/ns/net", f"--mount=/proc/{view}/ns/mnt", "--"]
        become = [] if user is None else [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        drop = ["setpriv", *become, "--pdeathsig=KILL", "--", "env", f"--chdir={cwd or home}", "--"]
        basic = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}:/usr/sbin:/sbin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
        }
        return subprocess.Popen(
            [*enter, *drop, *argv], env={**basic, **(env or {})}, cwd="/", start_new_session=True, **more
        )

    def start_at_origin(self, argv: Sequence[str | os.PathLike], **more) -> subprocess.Popen:
        """Start a further server among the origins, as root: it can listen on any address. Killed with this process."""
        enter = ["nsenter", f"--net=/proc/{self._pids['origin']}/ns/net", "--", "setpriv", "--pdeathsig=KILL", "--"]
        return subprocess.Popen([*enter, *argv], start_new_session=True, **more)

    def home(self, user: int | None = None) -> Path:
        """Return the home directory of a uid; creates it at the first call."""
        return self._make_directory(f"home-{user or 0}", user)

    def workspace(self, user: int | None = None, name: str = "work") -> Path:
        """Return a working directory that the uid owns."""
        return self._make_directory(f"{name}-{user or 0}", user)

    def make_repository(self, name: str, files: Mapping[str, str]) -> None:
        """Serve a git repository with one commit on `main` at https://ANY NAME/`name`.git; anyone may push."""
        git_server.make_repository(self.directory / "git", name, dict(files))

    def _make_directory(self, name: str, user: int | None) -> Path:
        path = self.directory / name
        if not path.exists():
            path.mkdir(0o700)
            os.chown(path, user or 0, user or 0)
        return path

    def _start(self) -> subprocess.Popen:
        settings = {**self._settings, "directory": str(self.directory), "parent": os.getpid()}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.lab.namespaces", json.dumps(settings)],
            cwd=_PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def _first_line(self) -> bytes:
        line = self._process.stdout.readline() if readable(self._process.stdout, _PATIENCE) else b""
        if not line:
            raise LabError("the lab could not be made: see the errors of its namespace process above")
        return line

    def _end(self) -> None:
        """Kill the namespace process and wait until its process group is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in self._process.stdin, self._process.stdout:
            stream.close()
