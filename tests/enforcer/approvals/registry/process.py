"""A registry as a process, with this process as the runner of a task, as its worker, and as whoever answers."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

from enforcer.approvals import client
from enforcer.approvals.registration import Registration
from proxy.approvals import protocol
from proxy.approvals.approval_request import ApprovalRequest, Kind, Rule
from rules.decision import ApprovalTerms, RequiredApproval
from tests.support.harness import whole_lines

PATIENCE = 60.0  # seconds


def until(found, what="it"):
    deadline = time.monotonic() + PATIENCE
    while not (there := found()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return there


def question(path="/x", **terms):
    asks = Rule.of(RequiredApproval("web:writing", "d" * 64, ApprovalTerms(**{"by_self": True, **terms}), "because"))
    return ApprovalRequest(Kind.REQUEST, "tls", "api.example", 443, "POST", path, rules=(asks,))


class Gate:
    """A task's post, and its worker's end."""

    def __init__(self, task, journal):
        self.who = protocol.Introduction(f"sandbox-{task}", task, "make", {"team": "web"}, os.geteuid(), "here")
        self.post = Registration(self.who, journal)
        self.post.begin()
        self.take(self.post.given.pop("approvals"))

    def take(self, end):
        self.end = socket.socket(fileno=end)
        self.end.settimeout(PATIENCE)
        self.say(protocol.Hello())
        assert isinstance(self.hear(), protocol.TaskState)

    def say(self, word):
        self.end.send(json.dumps(word.packed()).encode())

    def hear(self):
        return protocol.read_registry_message(json.loads(self.end.recv(1 << 17)))

    def ask(self, number=1, **more):
        self.say(protocol.Submit(number, question(**more)))
        pending = self.hear()
        assert isinstance(pending, protocol.Pending), pending
        return pending.approval

    def close(self):
        self.end.close()
        self.post.close()


def pid():
    with contextlib.suppress(OSError, ValueError):
        found = int((client.approvals_directory() / client.LOCK_FILE).read_text())
        if b"enforcer.approvals" in Path(f"/proc/{found}/cmdline").read_bytes():
            return found
    return 0


def kill(how=signal.SIGKILL):
    there = pid()
    if there:
        os.kill(there, how)
        until(lambda: not os.path.exists(f"/proc/{there}/cmdline") or pid() != there, "the registry's end")


def ask(**what):
    return client.ask(what)


def events(journal, kind=""):
    lines = [json.loads(line) for file in sorted(journal.glob("*/*.jsonl")) for line in whole_lines(file)]
    return [line for line in lines if line["kind"].startswith(kind)]
