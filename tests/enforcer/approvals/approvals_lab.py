"""A lab, the people who answer in it, and the registry that they answer to."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.lab import Lab, Name
from tests.support.event_schema import hold
from tests.support.harness import whole_lines
from tests.support.waiting import PATIENCE, wait_until

HERE = Path(__file__).parent
NAMES = {"api.held.example": Name.at("93.184.216.34"), "git.held.example": Name.at("93.184.216.35")}
RULES = """
version: 1
name: held
rules:
  - {id: reading, to: api.held.example, http: {methods: [GET]}, action: allow}
  - id: writing
    to: api.held.example
    http: {methods: [POST], paths: ["/ask/*"]}
    action: ask
    approval: {self: true, hold: 1m}
  - id: by-two
    to: api.held.example
    http: {methods: [POST], paths: [/ask/two]}
    action: ask
    approval: {by: dba, count: 2, hold: 1m}
  - {id: cloning, to: git.held.example, git: {repos: [acme], fetch: true, push: ["refs/heads/**"]}, action: flag}
  - id: main
    to: git.held.example
    git: {repos: [acme], push: [refs/heads/main, "refs/heads/release/*"]}
    action: ask
    approval: {self: true, hold: 1m}
    why: what is on main is deployed
"""
APPROVERS = """
version: 1
people:
  - {{name: owner, uid: {uid}}}
  - {{name: ada, tokens: ["{ada}"]}}
  - {{name: bo, tokens: ["{bo}"]}}
groups: {{dba: [ada, bo]}}
"""


def _only(who):
    """Once is enough: what is tried is the same for root and for a user."""
    param = pytest.param(who, marks=pytest.mark.xdist_group(f"held-{who}"))
    return pytest.mark.parametrize("approvals_lab", [param], indirect=True)


as_root, as_user = _only("root"), _only("user")


class ApprovalsLab:
    """One user's registry and runs."""

    def __init__(self, lab, user):
        self.lab, self.user = lab, user
        self.told = ""  # what a run said at its own terminal
        self.uid = user or 0
        self._asking = None
        self.home = lab.home(user)
        self.state = self.home / ".local/state/exeat"
        self.rules = self.write(self.home / "rules.yaml", RULES)
        self.tokens = {name: secrets.token_urlsafe(32) for name in ("ada", "bo", "mallory")}
        known = {name: f"sha256:{hashlib.sha256(token.encode()).hexdigest()}" for name, token in self.tokens.items()}
        self.write(self.state / "approvers.yaml", APPROVERS.format(uid=self.uid, **known), 0o600)
        lab.make_repository("acme", {"README.md": "x\n"})

    def write(self, path, text, mode=0o644):
        for above in reversed(path.relative_to(self.home).parents):
            if not (self.home / above).exists():
                (self.home / above).mkdir(mode=0o700)
                os.chown(self.home / above, self.uid, self.uid)
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, self.uid, self.uid)
        return path

    def workspace(self, name):
        work = self.lab.workspace(self.user, name)
        shutil.copy(HERE / "task_program.py", work)
        return work

    def start(self, name, *words, rules=None, options=(), by=(), **more):
        """Start a task; it prints one JSON value."""
        run = ["exeat", "run", "--quiet", "--rules", rules or self.rules, "--task", name, *options, "--"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        words = [*by, *run, "python3", "task_program.py", *words]
        return self.lab.start(words, user=self.user, cwd=self.workspace(name), **{**pipes, **more})

    def done(self, task):
        """What it printed."""
        out, err = task.communicate(timeout=PATIENCE * 3)
        assert task.returncode == 0, err
        return json.loads(out), err

    def exeat(self, *words, **more):
        return self.lab.run(["exeat", *words], user=self.user, cwd=self.home, **more)

    def refs(self):
        """Where the refs of the repository are."""
        words = ["git", "for-each-ref", "--format=%(refname) %(objectname)"]
        out = subprocess.run(words, cwd=self.lab.directory / "git/acme.git", capture_output=True, text=True).stdout
        return dict(line.split() for line in out.splitlines())

    def ask(self, **what):
        """What the registry answers, or the sentence that it refuses with."""
        if self._asking is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._asking = self.lab.start([sys.executable, str(HERE / "approver_program.py")], user=self.user, **pipes)
        self._asking.stdin.write(f"{json.dumps(what)}\n")
        self._asking.stdin.flush()
        found = json.loads(self._asking.stdout.readline())
        return found.get("refused") or found["answers"]

    def pending(self):
        return [each for said in self.ask(what="list") for each in said["approvals"]]

    def answer(self, approval, vote, **more):
        """The sentence that comes of an answer."""
        found = self.ask(what="answer", id=approval["id"], vote=vote, **more)
        return found if isinstance(found, str) else found[0]["text"]

    def waits(self, word):
        """The question about something, once it is asked."""
        return wait_until(lambda: next((each for each in self.pending() if word in each["line"]), None), word)

    def events(self, kind="", task=None):
        """What was told, in order; of one task."""
        lines = []
        for segment in sorted((self.state / "journal").glob("*/*.jsonl")):
            lines += [json.loads(line) for line in whole_lines(segment)]
        found = [event for event in hold(lines) if event["kind"].startswith(kind)]
        found = [event for event in found if task in (None, event.get("task", {}).get("name"))]
        return sorted(found, key=lambda event: event["time"])

    @property
    def registry(self):
        """The registry's pid, if one runs."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.state / "approvals/lock").read_text())
            if b"enforcer.approvals" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def end(self):
        """Leave nothing behind."""
        if self._asking is not None:
            self._asking.kill()
            self._asking.wait()
            for stream in (self._asking.stdin, self._asking.stdout):
                stream.close()
        self.kill()

    def kill(self):
        """Kill the registry, and wait until it is gone."""
        pid = self.registry
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: self.registry != pid, "the end of the registry")
        return pid


class Approvers(threading.Thread):
    """Whoever watches what is asked; `answers` says, by a word of it, what is said to that, one after the other."""

    def __init__(self, approvals_lab, answers):
        super().__init__()
        self.said = {}  # by word: whether it counted, and the sentence
        words = [sys.executable, str(HERE / "approver_program.py"), json.dumps(answers)]
        self.process = approvals_lab.lab.start(words, user=approvals_lab.user, stdout=subprocess.PIPE, text=True)

    def run(self):
        for line in self.process.stdout:
            told = json.loads(line)
            self.said.setdefault(told["word"], []).append((told["counts"], told["text"]))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.join()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def open_lab(user):
    """Everything for one user, and nothing of it afterwards."""
    with Lab(NAMES) as lab:
        made = ApprovalsLab(lab, Lab.ORDINARY if user else None)
        try:
            yield made
        finally:
            made.end()
