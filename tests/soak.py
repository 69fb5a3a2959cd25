"""Faults by the hundred: runs under a service while its processes are killed at random moments; then nothing may be left.

`python -m tests.soak [RUNS] [SEED]`, as root or not: 300 runs take some minutes. Ends with 1 and says what was left, if
anything was. `tests/enforcer/service` has the short form. A seed gives the same victims, not the same moments.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

EXEAT = str(Path(sys.executable).with_name("exeat"))
RULES = "version: 1\nname: soak\nrules:\n  - {id: none, to: allowed.example, action: allow}\n"
VICTIMS = ("nobody", "client", "run", "watcher", "init", "relay", "worker", "spare", "keyholder")
AT_ONCE = 4
PATIENCE = 60.0  # seconds
# Knocks at the gate as long as it runs: what is killed is killed under traffic.
TASK = """
import socket, ssl, sys, time
end = time.monotonic() + float(sys.argv[1])
shown = ssl._create_unverified_context()  # a certificate for a name, and a page that says why it is refused
while time.monotonic() < end:
    try:
        with socket.create_connection(("93.184.216.34", 443), timeout=2) as sock:
            shown.wrap_socket(sock, server_hostname=f"n{time.monotonic_ns() % 50}.example").close()
        with socket.create_connection(("93.184.216.34", 80), timeout=2) as sock:
            sock.sendall(b"GET / HTTP/1.0\\r\\nHost: a.example\\r\\n\\r\\n")
            print(sock.recv(64)[:12], flush=True)
    except OSError:
        pass
"""


class Soak:
    """One service, and what is done to it."""

    def __init__(self, work, seed):
        self.chance = random.Random(seed)
        self.work = work
        self.environment = {**os.environ, "XDG_STATE_HOME": f"{work}/state", "EXEAT_CONTROL": f"{work}/service/control"}
        self.left = []
        self.ends, self.killed = Counter(), Counter()
        (work / "workspace").mkdir()
        (work / "rules.yaml").write_text(RULES)
        self.mounts = Path("/proc/self/mountinfo").read_text()
        up = [EXEAT, "up", "--workers", "2"]
        self.up = subprocess.Popen(up, env=self.environment, stderr=subprocess.PIPE, text=True)
        said = self.up.stderr.readline()
        if "serving" not in said:
            raise SystemExit(said)
        self.seen = set()  # every process that there has been, with when it was started

    def asked(self, *words):
        done = subprocess.run([EXEAT, *words], env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout

    def runs(self):
        return json.loads(self.asked("ps", "--format", "json") or "[]")

    def status(self):
        return json.loads(self.asked("status", "--format", "json"))

    def workers(self):
        return [worker["pid"] for worker in self.status()["workers"]]

    def begin(self):
        words = ["run", "--rules", f"{self.work}/rules.yaml", "--quiet", "--", "python3", "-c", TASK]
        seconds = f"{self.chance.uniform(0.05, 0.6):.2f}"
        out = subprocess.DEVNULL if self.chance.random() < 0.3 else subprocess.PIPE
        return subprocess.Popen(
            [EXEAT, *words, seconds],
            env=self.environment,
            cwd=self.work / "workspace",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )

    def victim(self, kind, clients):
        """Return the id of a process of that kind, if there is one just now."""
        if kind == "client":
            return self.chance.choice(clients).pid
        if kind in ("worker", "keyholder"):
            return self.chance.choice(self.workers() if kind == "worker" else [self.status()["keyholder"]])
        runs = {each["pid"] for each in self.runs()}
        if kind == "spare":
            below = [pid for pid in children(self.up.pid) if pid not in {*runs, *self.workers()} and children(pid)]
            return self.chance.choice(below or [0])
        if not runs:
            return 0
        run = self.chance.choice(sorted(runs))
        if kind == "run":
            return run
        outer = [pid for pid in children(run) if children(pid)]
        relays = [pid for pid in children(run) if not children(pid)]
        inits = [pid for each in outer for pid in children(each)]
        return self.chance.choice({"watcher": outer, "init": inits, "relay": relays}[kind] or [0])

    def round(self, count):
        clients = [self.begin() for _ in range(count)]
        time.sleep(self.chance.uniform(0, 0.5))
        kind = self.chance.choice(VICTIMS)
        self.seen |= below(self.up.pid)
        if kind != "nobody" and (pid := self.victim(kind, clients)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[kind] += 1
        self.seen |= below(self.up.pid)
        for client in clients:
            try:
                client.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                self.left.append(f"a run that never ended, after {kind} was killed")
                client.kill()
                client.communicate()
            self.ends[client.returncode] += 1

    def settle(self):
        """Wait until no run is left, and look what is left of those that there were."""
        if not until(lambda: not self.runs()):
            self.left.append(f"runs that the service still lists: {self.runs()}")
        spares = {pid for pid in children(self.up.pid) if children(pid)}
        kept = {pid for each in spares for pid, _ in below(each)} | spares | set(children(self.up.pid))
        gone = {each for each in self.seen if each[0] not in kept}
        if not until(lambda: not [each for each in gone if started(each[0]) == each[1]]):
            self.left += [f"process {name(pid)}" for pid, since in gone if started(pid) == since]
        for pid in filter(None, (self.up.pid, *self.workers())):
            # Every sandbox has some; a few stay for the workers, the rules and those that wait.
            with contextlib.suppress(PermissionError):
                if len(found := os.listdir(f"/proc/{pid}/fd")) > 60:
                    self.left.append(f"{len(found)} descriptors in {name(pid)}")

    def end(self):
        """End the service, and look what is left of all of it."""
        self.seen |= below(self.up.pid)
        self.up.terminate()
        self.up.communicate(timeout=PATIENCE)
        if not until(lambda: not [pid for pid, since in self.seen if started(pid) == since]):
            self.left += [f"process {name(pid)}" for pid, since in self.seen if started(pid) == since]
        if Path("/proc/self/mountinfo").read_text() != self.mounts:
            self.left.append("mounts (or somebody else has made or taken away some)")
        # What was killed is swept by the next start: groups that nobody has locked.
        subprocess.run([EXEAT, "run", "--no-service", "--rules", f"{self.work}/rules.yaml", "--quiet", "--", "true"],
                       env=self.environment, cwd=self.work / "workspace", check=True)  # fmt: skip
        ours = {f"{pid:x}" for pid, _ in self.seen}
        for path in Path("/sys/fs/cgroup").rglob("exeat-task-*"):
            if path.name.split("-")[2] in ours:
                self.left.append(f"group {path}")
        verified = subprocess.run(
            [EXEAT, "log", "verify"], env=self.environment, capture_output=True, text=True, check=False
        )
        if verified.returncode:
            self.left.append(f"journal: {verified.stdout[-2000:]}{verified.stderr[-500:]}")
        print("journal:", verified.stdout.strip().splitlines()[-1:] or verified.stderr.strip())


def until(true):
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def children(pid):
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def below(pid):
    found = set()
    for child in children(pid):
        found |= below(child)
        if (since := started(child)) is not None:
            found.add((child, since))
    return found


def started(pid):
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None


def name(pid):
    with contextlib.suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()[:60]}"
    return str(pid)


def main(runs=300, seed=0):
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        work.chmod(0o755)
        soak = Soak(work, seed)
        began = time.monotonic()
        try:
            for at in range(0, runs, AT_ONCE):
                soak.round(min(AT_ONCE, runs - at))
                if at % 40 == 0:
                    print(f"{at + AT_ONCE} runs, {time.monotonic() - began:.0f} s", flush=True)
            soak.settle()
            soak.end()
        finally:
            soak.up.kill()
            soak.up.wait()
        print(f"{runs} runs in {time.monotonic() - began:.0f} s, seed {seed}")
        print("killed:", dict(soak.killed))
        print("ends:", dict(soak.ends))
        print("left:", soak.left or "nothing")
        return 1 if soak.left else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
