"""A registry as a process, with this process as the runner of a task, as its worker, and as whoever answers."""

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

from enforcer.approvals import client
from enforcer.approvals.registration import Registration
from proxy.approvals import protocol
from proxy.approvals.approval_request import ApprovalRequest, Kind, Rule
from rules.decision import ApprovalTerms, RequiredApproval
from tests.support.harness import whole_lines
from tests.support.waiting import PATIENCE, wait_until


def question(path="/x", **terms):
    asks = Rule.of(RequiredApproval("web:writing", "d" * 64, ApprovalTerms(**{"by_self": True, **terms}), "because"))
    return ApprovalRequest(Kind.REQUEST, "tls", "api.example", 443, "POST", path, rules=(asks,))


class WorkerEnd:
    """A task's post, and its worker's end."""

    def __init__(self, task, journal):
        self.introduction = protocol.Introduction(
            f"sandbox-{task}", task, "make", {"team": "web"}, os.geteuid(), "here"
        )
        self.registration = Registration(self.introduction, journal)
        self.registration.begin()
        self.take(self.registration.given.pop("approvals"))

    def take(self, end):
        self.end = socket.socket(fileno=end)
        self.end.settimeout(PATIENCE)
        self.send(protocol.Hello())
        assert isinstance(self.receive(), protocol.TaskState)

    def send(self, word):
        self.end.send(json.dumps(word.packed()).encode())

    def receive(self):
        return protocol.read_registry_message(json.loads(self.end.recv(1 << 17)))

    def ask(self, number=1, **more):
        self.send(protocol.Submit(number, question(**more)))
        pending = self.receive()
        assert isinstance(pending, protocol.Pending), pending
        return pending.approval

    def close(self):
        self.end.close()
        self.registration.close()


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
        wait_until(lambda: not os.path.exists(f"/proc/{there}/cmdline") or pid() != there, "the registry's end")


def ask(**what):
    return client.ask(what)


def events(journal, kind=""):
    lines = [json.loads(line) for file in sorted(journal.glob("*/*.jsonl")) for line in whole_lines(file)]
    return [line for line in lines if line["kind"].startswith(kind)]
