"""Asking a client that runs already."""

import json
import select
import subprocess
from dataclasses import asdict
from pathlib import Path

from tests.bench.client import Place

_LONGEST = 60.0  # seconds


class AskError(Exception):
    """A client could not do what it was asked."""


class Asked:
    """A client program, outside or inside a sandbox."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self._process, self._log = process, log

    def ask(self, what: str, place: Place | None = None, **wish) -> dict:
        """Have it do something and return what it tells. Raises AskError."""
        wish["what"] = what
        if place is not None:
            wish["place"] = asdict(place)
        self._process.stdin.write(json.dumps(wish).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _LONGEST)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            why = self._log.read_text(errors="replace")[-2000:] or "it says nothing"
            raise AskError(f"the client at {place and place.name} is gone: {why}")
        answer = json.loads(line)
        if "error" in answer:
            raise AskError(f"{what} at {place and place.name}:{place and place.port}: {answer['error']}")
        return answer
