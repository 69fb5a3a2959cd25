"""How long a held attempt waits once somebody has answered: `python -m tests.bench.approvals [COUNT]`.

From the moment that the answer is sent to the registry until the gate's worker has read its own: through a real registry, its
socket, and its file, where every commit is on the disk first; one question at a time. Then the same over PostgreSQL, answered on one
host and held on another: two registries in this process, and a server of our own (its `fsync` off: its disk isn't ours to measure).
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from proxy.approvals import protocol
from tests.proxy.approvals.registry_lab import ADA, RegistryLab
from tests.proxy.approvals.sample_requests import REQUEST
from tests.support.waiting import wait_until_async


def through_a_registry(count: int, base: Path) -> list[float]:
    """Have that many questions answered one after the other; seconds of each."""
    os.environ["XDG_STATE_HOME"] = str(base)
    from enforcer.approvals import client
    from enforcer.approvals.registration import Registration

    who = protocol.Introduction("sandbox-1", "task-1", "bench", {}, os.geteuid(), "here")
    post = Registration(who, base / "journal")
    post.begin()
    end = socket.socket(fileno=post.given.pop("approvals"))
    end.settimeout(60)
    end.send(json.dumps(protocol.Hello().packed()).encode())
    protocol.read_registry_message(json.loads(end.recv(1 << 17)))
    took = []
    for number in range(count):
        end.send(json.dumps(protocol.Submit(number, REQUEST._replace(path=f"/{number}")).packed()).encode())
        pending = protocol.read_registry_message(json.loads(end.recv(1 << 17)))
        heard: list[float] = []

        def hear() -> None:
            answer = protocol.read_registry_message(json.loads(end.recv(1 << 17)))
            heard.append(time.perf_counter())  # noqa: B023  joined below
            assert answer.result is protocol.Result.GRANTED

        thread = threading.Thread(target=hear)
        thread.start()
        began = time.perf_counter()
        client.ask({"what": "answer", "id": pending.approval, "vote": "approve"})
        thread.join()
        took.append(heard[0] - began)
    registry = int((client.approvals_directory() / client.LOCK_FILE).read_text())
    end.close()
    post.close()
    os.kill(registry, signal.SIGTERM)
    while os.path.exists(f"/proc/{registry}"):
        time.sleep(0.01)
    return took


async def across_hosts(count: int, url: str) -> list[float]:
    """Have that many questions held here and answered there; seconds of each."""
    from proxy.approvals.postgres_store import PostgresStore

    here, there = RegistryLab(PostgresStore(url)), RegistryLab(PostgresStore(url))
    await here.registry.open()
    await there.registry.open()
    task = await here.task()
    took = []
    for index in range(count):
        number, id_ = await here.submit_pending(task, REQUEST._replace(path=f"/{index}"))
        began = time.perf_counter()
        await there.approve(id_, ADA)
        await wait_until_async(lambda number=number: here.answer(number) is not None, pause=0.0)
        took.append(time.perf_counter() - began)
        here.replies.clear()
    await here.registry.close()
    await there.registry.close()
    return took


def told(what: str, took: list[float]) -> None:
    """Print what that was."""
    cuts = statistics.quantiles(took, n=100)
    print(f"{what}: p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms, of {len(took)}")


def main() -> None:
    """Measure and tell."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    base = Path(tempfile.mkdtemp(prefix="exeat-bench-"))
    try:
        told("from answer to release, one file", through_a_registry(count, base))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    from tests.proxy.approvals.postgres_server import Server

    server = Server()
    try:
        told("from answer on another host to release, PostgreSQL", asyncio.run(across_hosts(count, server.url())))
    finally:
        server.stop()


if __name__ == "__main__":
    main()
