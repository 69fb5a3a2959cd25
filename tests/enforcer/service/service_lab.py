"""What the scenarios are made of: a service and those who ask it, and what their tasks do."""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from enforcer.service.control_client import send_request
from tests.support.harness import whole_lines
from tests.support.waiting import PATIENCE, wait_until

EXEAT = str(Path(sys.executable).with_name("exeat"))
FILE = Path.cwd() / "rules.yaml"  # beside the directory that tasks may write
LOG = Path.cwd() / "service.log"  # what the last service said
RULES = "version: 1\nname: web\nrules:\n  - {id: none, to: allowed.example, action: allow}\n"
# Tries a connection again and again, and says how each one ended.
KNOCK = """
import socket, sys, time
while True:
    try:
        with socket.create_connection(("93.184.216.34", 80), timeout=30) as sock:
            sock.sendall(b"GET / HTTP/1.0\\r\\nHost: a.example\\r\\n\\r\\n")
            answer = sock.recv(64).split()[1].decode()
    except OSError as error:
        answer = type(error).__name__
    print(answer, flush=True)
    time.sleep(0.02)
"""


# Takes all it can: connections that say half a word, each kept; names without end; datagrams.
HOG = """
import os, select, socket, struct
kept, errors, number = [], 0, 0
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dns.setblocking(False)
while True:
    for _ in range(50):
        number += 1
        try:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("93.184.216.34", 443))
            kept.append(sock)
        except OSError:
            errors += 1
        name = b"".join(bytes([len(part)]) + part for part in (b"n%d" % number, b"allowed", b"example"))
        try:
            dns.sendto(struct.pack(">6H", number % 65536, 256, 1, 0, 0, 0) + name + b"\\0" + struct.pack(">2H", 1, 1), ("8.8.8.8", 53))
            dns.sendto(b"x" * 100, ("8.8.8.8", 443))
        except OSError:
            pass
    for sock in kept[-200:]:
        try:
            sock.send(b"\\x16\\x03\\x01")
        except OSError:
            pass
    if len(kept) > 1500:
        for sock in kept[:500]:
            sock.close()
        del kept[:500]
    if number == 1500:
        print("flooding", flush=True)
"""
# What a name means, and what addresses near it mean, which the neighbour may have been given.
NEAR = """
import ipaddress, socket, sys
mine = ipaddress.ip_address(socket.gethostbyname("allowed.example"))
for far in (1, 2, 3, 200):
    try:
        with socket.create_connection((str(mine + far), 443), timeout=30) as sock:
            print("open", sock.recv(1))
    except ConnectionError:
        print("refused")
"""
# Asks for a name that is refused; says the answer's code, which is 3 where there is none, and how many records it has.
REFUSED = """
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(30)
sock.sendto(struct.pack(">6H", 1, 256, 1, 0, 0, 0) + b"\\4evil\\7example\\0" + struct.pack(">2H", 1, 1), ("8.8.8.8", 53))
answer = struct.unpack_from(">6H", sock.recv(512))
print(answer[1] & 15, answer[3])
"""
# The same over TCP, at an address that is the namespace's own: a container's resolv.conf may name one.
REFUSED_OVER_TCP = """
import socket, struct
query = struct.pack(">6H", 1, 256, 1, 0, 0, 0) + b"\\4evil\\7example\\0" + struct.pack(">2H", 1, 1)
with socket.create_connection(("127.0.0.11", 53), timeout=30) as sock:
    sock.sendall(struct.pack(">H", len(query)) + query)
    answer = struct.unpack_from(">6H", sock.makefile("rb").read(14), 2)
print(answer[1] & 15, answer[3])
"""
# A service that counts and looks ten times as often as it would, and keeps a worker that nobody needs for as much less.
OFTEN = """
import sys
from enforcer.service import helper_processes, placement, worker_pool
placement._REPORT_EVERY = helper_processes._METRICS_EVERY = worker_pool._CHECK_EVERY = 0.2
worker_pool._KEPT_EMPTY = 0.6
from enforcer.__main__ import main
sys.exit(main())
"""
IMPATIENT = (sys.executable, "-P", "-c", OFTEN)


class Up:
    """A running service."""

    def __init__(self, *options, program=(EXEAT,)):
        with LOG.open("w") as log:
            environment = {
                **os.environ,
                "PYTHONWARNINGS": "always:This process",
            }  # has more threads than one, and forks
            self.process = subprocess.Popen([*program, "up", "--workers", "2", *options], stderr=log, env=environment)
        atexit.register(self.process.kill)  # whatever becomes of the scenario
        wait_until(lambda: "\n" in LOG.read_text() or self.process.poll() is not None, "the service")
        self.said = LOG.read_text().partition("\n")[0] + "\n"

    @staticmethod
    def status():
        (said,) = send_request({"what": "status"})
        return said

    @staticmethod
    def listed():
        return [each for part in send_request({"what": "list"}) for each in part["sandboxes"]]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        assert "multi-threaded" not in LOG.read_text()
        return status


def run(*words, **more):
    done = subprocess.run(
        [EXEAT, "run", "--rules", str(FILE), *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **more,
    )
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


def shown(command):
    """What `exeat ps` or `exeat status` says; to wait for something, asking the service itself is cheaper."""
    return json.loads(subprocess.run([EXEAT, command, "--format", "json"], capture_output=True, check=True).stdout)


def begin(*words, **more):
    return subprocess.Popen(
        [EXEAT, "run", "--rules", str(FILE), "--quiet", *words], stdout=subprocess.PIPE, text=True, **more
    )


def descendants(pid):
    """Every process below one, with when it was started: numbers are used again."""
    found, waiting = set(), [pid]
    while waiting:
        with contextlib.suppress(OSError):
            at = waiting.pop()
            children = Path(f"/proc/{at}/task/{at}/children").read_text().split()
            waiting += map(int, children)
            found.update((int(child), started(int(child))) for child in children)
    return found


def parent(pid):
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def started(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def journal():
    found = sorted((Path(os.environ["HOME"]) / ".local/state/exeat/journal").glob("*/*.jsonl"))
    return [json.loads(line) for file in found for line in whole_lines(file)]


def scraped(address):
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        return answer.read().decode()
