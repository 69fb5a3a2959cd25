"""Invariant 2: the worker is killed during transfers. The task loses the network and continues."""

import json
import os
import signal
import sys

import pytest

from enforcer.sandbox.identity import FIRST_ID, RANGE, WORKER_ID
from tests.support import confined

from .attempt_network import RULES, dns_names
from .lab_runner import PYTHON, Journal, wait_until_dead, worker_of

# Listens at the origin; sends a piece, then reads until the connection ends and prints how it ended.
SERVER = """
import socket, sys
server = socket.create_server(("", 9100))
print("listening", flush=True)
client, _ = server.accept()
client.sendall(b"x" * 1000)
size = 0
try:
    while data := client.recv(65536):
        size += len(data)
    print("eof", size, flush=True)
except OSError as error:
    print("reset", size, flush=True)
"""
TASK = """
import json, os, socket, sys
from task.wire import answer, ask, connect, request, tls, until_the_end
from task.attempts import reason
raw = connect("cut.more.raw.example", 9100)
raw.sendall(b"y" * 1000)
got = 0
while got < 1000:
    got += len(raw.recv(65536))
streams = {}
for name, stream in (("inspected", tls("cut.more.allowed.example")), ("spliced", tls("cut.more.spliced.example")),
                     ("clear", connect("cut.more.allowed.example", 80))):
    stream.sendall(request("cut.more.spliced.example" if name == "spliced" else "cut.more.allowed.example", "/slow/1000/0.05"))
    streams[name] = stream
    assert stream.recv(10)
known = socket.gethostbyname("later.more.allowed.example")
print("ready", flush=True)
input()
said = {"raw": until_the_end(raw)["end"]}
for name, stream in streams.items():
    said[name] = until_the_end(stream)["end"]
def tried(function):
    try:
        return function()
    except OSError as error:
        return reason(error)
said["connect"] = [tried(lambda: connect(place, 443) and "connected") for place in (known, "93.184.219.66", "2606:4700::66")]
said["lookup"] = tried(lambda: socket.gethostbyname("new.more.allowed.example"))
def datagram(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("93.184.219.66", port))
        sock.send(b"x")
        return str(sock.recv(10))
said["udp"] = [tried(lambda: datagram(port)) for port in (53, 443, 9999)]
open("still-writing", "w").write("here")
print(json.dumps(said), flush=True)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def lost_worker_run(runner):
    """Results of the task, end of the raw transfer at the server, journal, and records of the origins after the kill."""
    origin = runner.lab.origin
    origin.name(dns_names())
    with runner.lab.start_at_origin([sys.executable, "-c", SERVER], stdout=-1, text=True) as server:
        assert server.stdout.readline() == "listening\n"
        with runner.start("lost", runner.rules(RULES), PYTHON, "-c", TASK) as task:
            assert task.stdout.readline() == "ready\n", task.stderr.read()
            worker = worker_of(task)
            kept = {
                "found": confined.found(worker), "shared": confined.shared(worker),
                "open": confined.descriptors(worker, runner.journal("lost")),
            }  # fmt: skip
            os.kill(worker, signal.SIGKILL)
            wait_until_dead(worker)
            origin.forget()
            out, err = task.communicate("go\n", timeout=60)
        ended = server.communicate(timeout=30)[0].split()
    return {
        "said": json.loads(out), "far": ended, "status": task.returncode, "error": err,
        "journal": Journal(runner.journal("lost")), "queries": origin.queries(), "connections": origin.connections(),
        "file": (runner.workspace("lost") / "still-writing").read_text(),
        "worker": kept,
    }  # fmt: skip


def test_worker_has_no_privileges_or_extra_descriptors(lost_worker_run, runner):
    """Each of these alone would let a compromised worker reach the rest of the host."""
    kept = lost_worker_run["worker"]
    if runner.user is None:
        uid = int(kept["found"]["Uid"][0].split()[0])
        assert (uid >= FIRST_ID, uid % RANGE) == (True, (FIRST_ID + WORKER_ID) % RANGE), "no range of its own"
    else:
        uid = runner.user
    assert kept["found"] == confined.wanted(uid)
    assert kept["shared"] == (["user"] if runner.user is None else [])
    # The journal, and no other file of the host.
    assert kept["open"] == {"/dev/null", "socket", "anon_inode", "below"}


def test_task_continues_without_its_worker(lost_worker_run):
    assert (lost_worker_run["status"], lost_worker_run["file"]) == (7, "here")
    assert "the gate ended unexpectedly; the task has no network from now on" in lost_worker_run["error"]


def test_new_attempts_are_refused_at_once_without_a_worker(lost_worker_run):
    assert lost_worker_run["said"]["connect"] == ["ECONNREFUSED"] * 3
    assert lost_worker_run["said"]["udp"] == ["ECONNREFUSED"] * 3
    assert lost_worker_run["said"]["lookup"].startswith("EAI")
    assert (lost_worker_run["queries"], lost_worker_run["connections"]) == ([], [])


@pytest.mark.parametrize("which", ["raw", "spliced", "inspected", "clear"])
def test_transfers_end_as_cut_when_the_worker_is_killed(lost_worker_run, which):
    """Invariant 12 holds for the end of the gate, too: only its end shows that a raw transfer is complete."""
    inside_tls = {"UNEXPECTED_EOF_WHILE_READING"} if which in {"spliced", "inspected"} else set()
    assert lost_worker_run["said"][which] in {"ECONNRESET", *inside_tls}


def test_upload_ends_as_reset_when_the_worker_is_killed(lost_worker_run):
    assert lost_worker_run["far"] == ["reset", "1000"]


def test_loss_of_the_worker_is_recorded(lost_worker_run):
    (fault,) = lost_worker_run["journal"].of(kind="gate.error")
    assert fault["fault"]["where"] == "worker"
    (ended,) = lost_worker_run["journal"].of(kind="task.ended")
    assert (ended["outcome"], ended["ending"]["status"]) == ("failed", 7)
