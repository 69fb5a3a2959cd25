"""The people of the demo: they watch what is asked, and answer with the commands that people answer with."""

import hashlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import threading
from pathlib import Path

APPROVERS = """version: 1
people:
  - {{name: owner, uid: 0}}
  - {{name: ada, tokens: ["{ada}"]}}
  - {{name: bo, tokens: ["{bo}"]}}
groups: {{dba: [ada, bo]}}
"""
TOKENS = ("ada", "bo")


class People:
    """Root, who has started the demo, and two who are known by their tokens. Enter it while the task runs."""

    def __init__(self, lab) -> None:
        self._lab = lab
        self.said: list[str] = []  # what was done, a line each
        self._home: Path = lab.home()
        digests = {}
        for name in TOKENS:
            token = secrets.token_urlsafe(32)
            self._token(name).write_text(f"{token}\n")
            self._token(name).chmod(0o600)
            digests[name] = f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
        state = self._home / ".local/state/exeat"
        state.mkdir(parents=True, mode=0o700, exist_ok=True)
        (state / "approvers.yaml").write_text(APPROVERS.format(**digests))
        (state / "approvers.yaml").chmod(0o600)

    def __enter__(self):
        words = ["exeat", "approvals", "watch", "--format", "json"]
        self._watch = self._lab.start(words, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._watch.kill()
        self._thread.join()
        self._watch.wait()
        self._watch.stdout.close()
        lock = self._home / ".local/state/exeat/approvals/lock"
        if lock.exists():
            os.kill(int(lock.read_text()), signal.SIGTERM)

    def _token(self, name: str) -> Path:
        return self._home / f"{name}.token"

    def _follow(self) -> None:
        for line in self._watch.stdout:
            said = json.loads(line)
            if said["kind"] == "asked":
                self._answer(said["approval"])

    def _answer(self, approval: dict) -> None:
        named = approval["id"]
        if "main-is-asked-about" in str(approval["rules"]):
            self._run("exeat", "approve", named, "--why", "reviewed")
        elif "migrations/7" in approval["line"]:
            for name in TOKENS:
                self._run("exeat", "approve", named, "--token-file", self._token(name))
        else:
            self._run("exeat", "reject", named, "--why", "this drops a table", "--token-file", self._token("ada"))

    def _run(self, *words) -> None:
        done = self._lab.run(words)
        shown = shlex.join(word.name if isinstance(word, Path) else word for word in words)
        self.said.append(f"$ {shown}\n{(done.stdout + done.stderr).rstrip()}")
