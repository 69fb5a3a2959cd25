"""One service, and what is done to it: runs of which one process or another is killed at a random moment, or the service itself."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

from enforcer.service.control_client import send_request
from enforcer.service.warm_pool import MOST
from tests.soak import leftovers, origin, victims
from tests.soak.reviewed import SIZE, Reviewed
from tests.soak.reviewed import TASK as CHANGE
from tests.soak.victims import OF_A_RUN, VICTIMS

EXEAT = str(Path(sys.executable).with_name("exeat"))
RULES = f"version: 1\nname: soak\nrules:\n  - {{id: one, to: {origin.ALLOWED}, ports: 80, action: allow}}\n"
DESCRIPTORS = 60  # every sandbox has some; a few stay for the workers, the rules and those that wait
MOMENT = 1.0  # seconds in which a process may still come that is to be killed
ESCAPED = b"let-through"
# Knocks at the gate as long as it runs, and tries what is refused: what is killed is killed under traffic, and who
# watches a task's calls is there.
KNOCK = f"""
import socket, ssl, sys, time
end = time.monotonic() + float(sys.argv[1])
shown = ssl._create_unverified_context()  # a certificate for a name, and a page that says why it is refused
def get(address):
    with socket.create_connection((address, 80), timeout=2) as sock:
        sock.sendall(f"GET / HTTP/1.0\\r\\nHost: {{address}}\\r\\n\\r\\n".encode())
        print(sock.recv(64).split()[1].decode(), flush=True)
while True:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        print("{ESCAPED.decode()}", flush=True)
    except OSError:
        pass
    try:
        get("{origin.ALLOWED}")
        get("{origin.REFUSED}")
        with socket.create_connection(("{origin.REFUSED}", 443), timeout=2) as sock:
            shown.wrap_socket(sock, server_hostname=f"n{{time.monotonic_ns() % 50}}.example").close()
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x" * 64, ("9.9.9.9", 53))
    except OSError:
        pass
    if time.monotonic() > end:
        break
    time.sleep(0.02)
"""


class Soak:
    """What is done, and what was `wrong` with it."""

    def __init__(self, work, seed):
        """Begin a service whose files are all below `work`."""
        self.chance = random.Random(seed)
        self.work = work
        (work / "direct").mkdir()
        for each in ("home", "tmp", "runtime"):
            (work / each).mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "HOME": f"{work}/home",
            "TMPDIR": f"{work}/tmp",
            "XDG_RUNTIME_DIR": f"{work}/runtime",
            "XDG_STATE_HOME": f"{work}/state",
            "EXEAT_CONTROL": f"{work}/service/control",
        }
        os.environ["EXEAT_CONTROL"] = self.environment["EXEAT_CONTROL"]
        self.wrong = []
        self.ends, self.killed, self.answers = Counter(), Counter(), Counter()
        self.missed = Counter()  # of which kind there was nobody when it was to be killed
        self._turns, self._owed = [], set()
        self.seen = set()  # every process that there has been, with when it was started
        self.reviewed = Reviewed(work / "reviewed", EXEAT, self.environment, self.chance)
        self.number = 0
        (work / "rules.yaml").write_text(RULES)
        leftovers.adopt_orphans()
        self.mounts, self.groups = leftovers.mounts(), leftovers.groups()
        self.up = self._up()
        # What everybody's first run makes, and stays.
        self._run("true", also="--review").communicate(timeout=leftovers.PATIENCE)
        self.files = leftovers.files(work / "state")

    def _up(self):
        command = [EXEAT, "up", "--workers", "2", "--metrics", "127.0.0.1:0"]
        up = subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)
        said = up.stderr.readline()
        if "serving" not in said:
            raise RuntimeError(said)
        self.metrics = f"http://127.0.0.1:{said.rstrip().rpartition(':')[2]}/metrics"
        return up

    @staticmethod
    def runs():
        return [each for part in send_request({"what": "list"}) for each in part["sandboxes"]]

    @staticmethod
    def status():
        (said,) = send_request({"what": "status"})
        return said

    def workers(self):
        return [worker["pid"] for worker in self.status()["workers"]]

    def begin(self, count, seconds):
        """Begin runs, a part of them with a workspace that is reviewed: its files are there before, nobody else writes them."""
        numbers = []
        for _ in range(count):
            reviewed = not numbers or self.chance.random() < 0.3
            self.number += reviewed
            numbers.append(self.number if reviewed else 0)
        for number in filter(None, numbers):
            self.reviewed.prepare(number)
        return [(number, self._begin(number, seconds)) for number in numbers]

    def _begin(self, number, seconds):
        seconds = f"{self.chance.uniform(0.0, 0.8) if seconds is None else seconds:.2f}"
        if not number:
            return self._run("python3", "-c", KNOCK, seconds)
        more = ("--review", "--task", f"r{number}", "--workspace", f"{self.work}/reviewed")
        command = ("python3", "-c", CHANGE + KNOCK, seconds, str(number), str(SIZE))
        return self._run(*command, also=more, at="reviewed")

    def _run(self, *command, also=(), at="direct"):
        also = (also,) if isinstance(also, str) else also
        return subprocess.Popen(
            [EXEAT, "run", "--rules", f"{self.work}/rules.yaml", "--quiet", *also, "--", *command],
            env=self.environment,
            cwd=self.work / at,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _next(self):
        """Return whom to kill: each kind has had its turn before any has another, and one more where nobody was there."""
        if not self._turns:
            self._turns = [*VICTIMS, *sorted(self._owed)]
            self.chance.shuffle(self._turns)
            self._owed.clear()
        return self._turns.pop()

    def _kill(self, kind, clients):
        """Kill a process of that kind, which may take a moment to be there; none is there of a run that is over."""
        which = self.chance.random()
        if found := leftovers.poll_until(lambda: self._there(kind, clients), MOMENT):
            pid = found[int(which * len(found))]
            self.seen |= leftovers.below(self.up.pid)
            with contextlib.suppress(ProcessLookupError):
                if leftovers.started(pid):  # who has ended, and isn't waited for yet, can be killed, too (kill(2))
                    os.kill(pid, signal.SIGKILL)
                    self.killed[kind] += 1
                    return
        self.missed[kind] += 1
        self._owed.add(kind)

    def _there(self, kind, clients):
        if kind == "client":
            return [client.pid for client in clients if client.poll() is None]
        return victims.there(kind, self.up.pid, {each["pid"] for each in self.runs()}, self.status())

    def spared(self):
        """Return the kinds of which none was killed."""
        return [kind for kind in VICTIMS if kind != "nobody" and not self.killed[kind]]

    def round(self, count, kind=None, seconds=None):
        """Begin so many runs, kill one process at a random moment, and see all of them to their ends."""
        begun = self.begin(count, seconds)
        clients = [client for _, client in begun]
        kind = kind or self._next()
        self._watch(self.chance.uniform(0, 0.6))
        if kind != "nobody":
            self._kill(kind, clients)
        if seconds is not None and not leftovers.poll_until(lambda: self.status()["sandboxes"] == count):
            self.wrong.append(f"{self.status()['sandboxes']} of {count} sandboxes at once")
        before = self.ends.copy()
        for number, client in begun:
            try:
                said, _ = client.communicate(timeout=leftovers.PATIENCE)
            except subprocess.TimeoutExpired:
                self.wrong.append(f"a run that never ended, after {kind} was killed")
                client.kill()
                said, _ = client.communicate()
            self.ends[client.returncode] += 1
            self.answers.update(said.split())
            if number:
                self.reviewed.ended(number, said)
        failed = (self.ends - before).total() - (self.ends - before)[0]
        if kind != "service" and failed > (kind in OF_A_RUN):
            self.wrong.append(f"{failed} of {count} runs failed when {kind} was killed")
        if kind == "service":
            self.again()

    def _watch(self, seconds):
        ends = time.monotonic() + seconds
        while (rest := ends - time.monotonic()) > 0:
            self.seen |= leftovers.below(self.up.pid)
            time.sleep(min(rest, 0.05))

    def again(self):
        """After the service was killed: all of it is gone but what is for the next one, which takes that or cleans it."""
        self.up.communicate(timeout=leftovers.PATIENCE)
        self._gone("after the service was killed")
        self.up = self._up()
        if not leftovers.poll_until(lambda: not self._groups(), 10):
            self.wrong.append(f"groups that the next service left: {self._groups()}")

    def _groups(self):
        return leftovers.groups({pid for pid, since in self.seen if leftovers.started(pid) != since}) - self.groups

    def _gone(self, when):
        """No process of a service's is left, nor anything that one would hold."""
        ours = {int(os.environ.get(origin.PROCESS, "0")), self.up.pid if self.up.poll() is None else 0}
        if not leftovers.poll_until(lambda: not leftovers.reap(ours)):
            self.wrong += [f"process {leftovers.name(pid)} {when}" for pid in leftovers.reap(ours)]
        if leftovers.mounts() != self.mounts:
            self.wrong.append(f"mounts {when}, or somebody else has made or taken away some")

    def settle(self):
        """Wait until no run is left, and look what is left of those that there were."""
        if not leftovers.poll_until(lambda: not self.runs()):
            self.wrong.append(f"runs that the service still lists: {self.runs()}")
        if not leftovers.poll_until(lambda: not self._strangers()):
            self.wrong += [
                f"process {leftovers.name(pid)}, which the service doesn't say it has" for pid in self._strangers()
            ]
        if not leftovers.poll_until(lambda: not self._lacks()):
            self.wrong.append(f"nobody has taken the place of: {self._lacks()}")
        if not leftovers.poll_until(lambda: "exeat_sandboxes 0.0" in self._scraped()):
            self.wrong.append(f"who is scraped doesn't tell how it is: {self._scraped()[:500]}")
        kept = {self.up.pid, *leftovers.children(self.up.pid)}
        kept |= {pid for each in kept for pid, _ in leftovers.below(each)}
        gone = {each for each in self.seen if each[0] not in kept}
        if not leftovers.poll_until(lambda: not [each for each in gone if leftovers.started(each[0]) == each[1]]):
            self.wrong += [f"process {leftovers.name(pid)}" for pid, since in gone if leftovers.started(pid) == since]
        if not leftovers.poll_until(lambda: not leftovers.namespaces(self.up.pid)):
            self.wrong.append(f"namespaces that the service holds: {leftovers.namespaces(self.up.pid)}")
        for pid in filter(None, (self.up.pid, *self.workers())):
            with contextlib.suppress(PermissionError):
                if len(found := os.listdir(f"/proc/{pid}/fd")) > DESCRIPTORS:
                    self.wrong.append(f"{len(found)} descriptors in {leftovers.name(pid)}")
        self.reviewed.settle()

    def _strangers(self):
        """Children of the service that it has no word for, such as an old zygote, or more that wait than it makes."""
        found = victims.strangers(self.up.pid, (), self.status())
        waiting = [pid for pid in leftovers.children(self.up.pid) if victims.waits(pid)]
        return found + waiting[MOST:]

    def _lacks(self):
        """The kinds of which there is one missing, of those that are there whether anybody wants them or not."""
        having = victims.having(self.status())
        return [kind for kind in ("worker", "keeper", "scraped") if not all(map(leftovers.started, having[kind]))]

    def _scraped(self):
        """The lines of a scrape; none where nobody answers."""
        try:
            with urllib.request.urlopen(self.metrics, timeout=5) as answer:
                return answer.read().decode().splitlines()
        except OSError:
            return []

    def end(self):
        """End the service, and look what is left of all of it."""
        self.seen |= leftovers.below(self.up.pid)
        self.up.terminate()
        self.up.communicate(timeout=leftovers.PATIENCE)
        self._gone("after the end")
        if found := self._groups():
            self.wrong.append(f"groups: {found}")
        verified = subprocess.run(
            [EXEAT, "log", "verify"], env=self.environment, capture_output=True, text=True, check=False
        )
        if verified.returncode:
            self.wrong.append(f"journal: {verified.stdout[-2000:]}{verified.stderr[-500:]}")
        kept = leftovers.files(self.work / "state") - self.files
        kept |= (
            leftovers.files(self.work / "tmp")
            | leftovers.files(self.work / "runtime")
            | leftovers.files(self.work / "home")
        )
        kept |= leftovers.files(self.work / "service") - {"control.lock"} | leftovers.files(self.work / "direct")
        if kept := sorted(kept):
            self.wrong.append(f"files: {kept[:50]}")
        if origin.PROCESS in os.environ and (reached := origin.reached()) != {f"tcp {origin.ALLOWED}:80"}:
            self.wrong.append(f"the origin was reached as {sorted(reached)}")
        if self.answers[ESCAPED]:
            self.wrong.append(f"{self.answers[ESCAPED]} sockets for packets, which no task may have")
        self.wrong += self.reviewed.wrong

    def close(self):
        """End what still runs, whatever became of it."""
        self.up.kill()
        self.up.wait()
        shutil.rmtree(self.work, ignore_errors=True)
