"""UDP in real sandboxes, to a service of the host: the door opens and shuts with the rules, while the task runs."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support import harness

EXEAT = Path(sys.executable).with_name("exeat")
PYTHON = Path(sys.base_prefix) / "bin" / "python3"
WAIT = 30  # seconds for what must happen
TASK = """
import errno, socket, sys
kept = None
print("ready", flush=True)
for line in sys.stdin:
    how, port = line.split()
    sock = kept if how == "again" else socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if how != "again":
            sock.settimeout(10)
            sock.connect((socket.gethostbyname("host.exeat.internal"), int(port)))
        sock.send(how.encode())
        print(sock.recv(100).decode(), flush=True)
        kept = sock
    except OSError as error:
        print(errno.errorcode.get(error.errno, type(error).__name__), flush=True)
"""
CLOSED = "version: 1\nname: t\nrules:\n  - {id: other, to: other.example, action: allow}\n"


@pytest.fixture
def service():
    """A service on the host's loopback that says what it was told, and the port that it has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    data, peer = sock.recvfrom(1000)
                    if data == b"stop":
                        return
                    sock.sendto(b"heard " + data, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        port = sock.getsockname()[1]
        yield port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"stop", ("127.0.0.1", port))
        thread.join()


def opening(port):
    return CLOSED + f"  - {{id: host, to: host.exeat.internal, ports: {port}/udp, action: allow}}\n"


@contextlib.contextmanager
def running(someone, rules):
    argv = [EXEAT, "run", "--quiet", "--rules", rules, "--read", sys.base_prefix, "--", PYTHON, "-c", TASK]
    words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
    environment = {**os.environ, "HOME": str(someone.home), "PYTHONPATH": str(harness.PROJECT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=someone.work, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read()

            def tell(how, port):
                process.stdin.write(f"{how} {port}\n")
                process.stdin.flush()
                return process.stdout.readline().strip()

            yield tell
            process.stdin.close()
            assert process.wait(WAIT) == 0, process.stderr.read()
        finally:
            process.kill()


def loaded(someone, rules, text, count):
    """Save other rules and wait until they are in force."""
    someone.write(rules, text)
    deadline = time.monotonic() + WAIT
    while sum(event["kind"] == "rules.loaded" for event in someone.events()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def of(someone, kind):
    events = [e for e in someone.events() if e["kind"] == kind and e.get("protocol") == "udp"]
    return [(event["outcome"], event.get("reason")) for event in events]


def test_udp_socket_opens_and_closes_with_the_rules(someone, service):
    rules = someone.write(someone.home / "rules.yaml", CLOSED)
    with running(someone, rules) as tell:
        assert tell("one", service) == "ECONNREFUSED"
        loaded(someone, rules, opening(service), 2)
        assert tell("two", service) == "heard two"
        assert tell("again", service) == "heard again"
        assert tell("three", service + 1) == "ECONNREFUSED"
        loaded(someone, rules, CLOSED, 3)
        assert tell("again", service) == "ECONNREFUSED"
        assert tell("four", service) == "ECONNREFUSED"
        loaded(someone, rules, opening(service), 4)
        assert tell("five", service) == "heard five"
    decided = of(someone, "connection.decided")
    assert [one for one in decided if one[0] == "passed"] == [("passed", "rule")] * 2
    assert {reason for outcome, reason in decided if outcome == "blocked"} <= {"udp", "non_public_address"}
    assert of(someone, "connection.closed") == [("blocked", "non_public_address"), ("passed", None)]
    assert [e for e in someone.events() if e["kind"] == "gate.error"] == []


@harness.as_a_user
def test_bytes_and_limits_of_a_flow_are_recorded(someone, service):
    limited = opening(service).replace("action: allow}\n", "limits: {bytes_up: 10B}, action: allow}\n")
    rules = someone.write(someone.home / "rules.yaml", limited.replace("limits: {bytes_up: 10B}, ", "", 1))
    with running(someone, rules) as tell:
        assert tell("123456", service) == "heard 123456"
        assert tell("again", service) == "ECONNREFUSED"
    (closing,) = [e for e in someone.events() if e["kind"] == "connection.closed"]
    assert (closing["outcome"], closing["reason"]) == ("blocked", "limit_exceeded")
    assert closing["bytes"] == {"up": 6, "down": 12}
