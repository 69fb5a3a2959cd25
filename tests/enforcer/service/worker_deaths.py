"""Scenarios in which a service, a worker or a run is killed: what goes on, and that nothing of it is left."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.enforcer.service.service_lab import (
    EXEAT,
    HOG,
    IMPATIENT,
    KNOCK,
    LOG,
    Up,
    begin,
    descendants,
    journal,
    run,
    scraped,
    shown,
)
from tests.soak import leftovers
from tests.soak.soak import Soak
from tests.soak.victims import OF_A_RUN, OF_ALL
from tests.support.waiting import PATIENCE, wait_until

QUEUED = 8


def crash():
    """A worker is killed: its tasks wait for the next one, and the others don't."""
    up = Up("--metrics", "127.0.0.1:0", program=IMPATIENT)
    scrape = f"http://127.0.0.1:{up.said.rstrip().rpartition(':')[2]}/metrics"
    tasks = [begin("--task", f"task-{number}", "--", "python3", "-c", KNOCK) for number in range(2)]
    for task in tasks:
        assert (first := task.stdout.readline()) == "403\n", first
    where = {each["name"]: each["worker"] for each in up.listed()}
    before = {worker["number"]: worker["pid"] for worker in shown("status")["workers"]}
    victim = where["task-0"]
    os.kill(before[victim], signal.SIGKILL)
    after = wait_until(lambda: (found := up.status())["restarts"] and all(w["pid"] for w in found["workers"]) and found)
    answers = [[task.stdout.readline().strip() for _ in range(30)] for task in tasks]
    wanted = {"exeat_worker_restarts_total 1.0", "exeat_sandboxes 2.0", "exeat_rules_valid 1.0"}
    wait_until(lambda: wanted <= set((numbers := scraped(scrape)).splitlines()) and "service" in numbers, "a scrape")
    for task in tasks:
        task.terminate()
        task.wait(PATIENCE)
    wait_until(lambda: not up.listed())
    wait_until(
        lambda: {"exeat_sandboxes 0.0", 'exeat_tasks_total{outcome="passed"} 2.0'} <= set(scraped(scrape).splitlines())
    )
    run("--task", "maker", "--", "sh", "-c", "echo x > .envrc")  # what the runs themselves tell is scraped, too
    kinds = {"task.started": 3, "task.ended": 3, "tampering.detected": 1, "changes.kept": 1}
    told = {f'exeat_events_total{{kind="{kind}"}} {times}.0' for kind, times in kinds.items()}
    wait_until(lambda: told <= set(scraped(scrape).splitlines()), "what runs tell")
    return {
        "apart": where["task-0"] != where["task-1"],
        "answers": answers,
        "replaced": [
            worker["number"]
            for worker in after["workers"]
            if worker["pid"] != before.get(worker["number"], worker["pid"])
        ],
        "victim": victim,
        "signed": _without_key_holder(up),
        "ended": up.end(),
    }


# Tries a connection each time that it is told to, and says how it ended.
QUIET = KNOCK.replace("while True:", "for _ in sys.stdin:")


def _used(pid):
    """Return the seconds of processor time that a process has used."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def blamed():
    """A worker dies in the turn of one of its two sandboxes, again and again: the other one loses nothing but that worker."""
    up = Up("--workers", "1", program=IMPATIENT)
    quiet = begin("--task", "quiet", "--", "python3", "-c", QUIET, stdin=subprocess.PIPE)
    hog = begin("--task", "hog", "--", "python3", "-c", HOG)
    assert hog.stdout.readline() == "flooding\n"

    def answer():
        quiet.stdin.write("go\n")
        quiet.stdin.flush()
        return quiet.stdout.readline().strip()

    def worker_of(name):
        number = {each["name"]: each["worker"] for each in up.listed()}.get(name)
        return next((each for each in up.status()["workers"] if each["number"] == number and each["pid"]), None)

    answers = [answer()]
    while not (before := wait_until(lambda: worker_of("hog")))["apart"]:  # the first time, if it was at work as it died
        enough = _used(before["pid"]) + 0.2  # for the hog: with the neighbour's connection it is done by then
        wait_until(lambda before=before, enough=enough: _used(before["pid"]) >= enough, "its work")
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda before=before: (now := worker_of("hog")) and now["pid"] != before["pid"])
    answers.append(answer())
    neighbour = worker_of("quiet")
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: (now := worker_of("hog")) and now["pid"] != before["pid"])
    answers.append(answer())
    hog.kill()
    hog.communicate()
    same = worker_of("quiet") == neighbour
    own = before["number"]
    wait_until(
        lambda: own not in {each["number"] for each in up.status()["workers"]}, "the end of a worker nobody needs"
    )
    quiet.kill()
    quiet.communicate()
    wait_until(lambda: not up.listed())
    faults = [event["fault"] for event in journal() if event["kind"] == "gate.error"]
    return {"answers": answers, "same": same, "faults": faults, "ended": up.end()}


# Begins connections when it is told to, has their requests sent, and says what each is answered.
QUEUE = """
import socket, sys
print("ready", flush=True)
sys.stdin.readline()
waiting = []
for _ in range(int(sys.argv[1])):
    sock = socket.create_connection(("93.184.216.34", 80), timeout=60)
    sock.sendall(b"GET / HTTP/1.0\\r\\nHost: a.example\\r\\n\\r\\n")
    waiting.append(sock)
print("sent", flush=True)
for sock in waiting:
    try:
        print(sock.recv(64).split()[1].decode(), flush=True)
    except (OSError, IndexError) as error:
        print(type(error).__name__, flush=True)
"""


def backlog():
    """A worker is killed that takes nothing any more: what a task began meanwhile, the next worker takes from the listener."""
    up = Up()
    task = begin("--task", "queue", "--", "python3", "-c", QUEUE, str(QUEUED), stdin=subprocess.PIPE)
    assert (said := task.stdout.readline()) == "ready\n", said
    victim = next(worker["pid"] for worker in up.status()["workers"] if worker["sandboxes"])
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: _stopped(victim), "a worker that stands still")
    task.stdin.write("go\n")
    task.stdin.flush()
    assert (said := task.stdout.readline()) == "sent\n", said
    before = [event for event in journal() if event["kind"] == "connection.decided"]
    assert _stopped(victim)  # and nobody has ended it for standing still
    os.kill(victim, signal.SIGKILL)
    answers = task.communicate(timeout=PATIENCE)[0].split()
    return {"before": len(before), "answers": answers, "restarts": up.status()["restarts"], "ended": up.end()}


def _stopped(pid):
    """Whether each of its threads is (proc_pid_stat(5))."""
    stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def _without_key_holder(up):
    """Each worker shows a page under a certificate; the certificate signer is killed, and they do again."""
    first = up.status()["keyholder"]
    page = ["curl", "-sk", "-m", str(PATIENCE), "-o", "/dev/null", "-w", "%{http_code}"]
    waiting = begin(
        "--task",
        "waiting",
        "--",
        "sh",
        "-c",
        f"{shlex.join(page)} https://one.example; echo; read -r line",
        stdin=subprocess.PIPE,
    )
    assert (shown := waiting.stdout.readline()) == "403\n", shown
    pages = [run("--quiet", "--", *page, "https://two.example")["out"]]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "the certificate signer ended (its process ended)" in LOG.read_text(), "what is said of it")
    pages.append(run("--quiet", "--", *page, "https://three.example")["out"])
    waiting.communicate("\n")
    return {"pages": pages, "first": first, "next": up.status()["keyholder"]}


def killed():
    """The service is killed with all it has; the next one begins anew, and takes away what its runs had of the host's cgroups."""
    leftovers.adopt_orphans()
    mounts, others = leftovers.mounts(), leftovers.groups()
    up = Up()
    task = begin("--review", "--", "python3", "-c", f"open('made', 'w').write('by the task'){KNOCK}")
    assert task.stdout.readline() == "403\n"
    had = descendants(up.process.pid)
    place = Path(os.environ["EXEAT_CONTROL"]).parent
    up.process.kill()
    up.process.wait()
    status = task.wait(PATIENCE)
    wait_until(lambda: not leftovers.reap({task.pid}), "the end of all processes, whoever's children they are by now")
    there = {path.name for path in place.iterdir()}, leftovers.mounts() == mounts
    again = Up()
    wait_until(
        lambda: not leftovers.groups({pid for pid, _ in had}) - others, "the end of what its runs had of cgroups"
    )
    done = subprocess.run([EXEAT, "changes", "--format", "json"], capture_output=True, check=True).stdout
    return {"had": len(had), "status": status, "there": [sorted(there[0]), there[1]],
            "made": [os.path.exists("made"), [each["changes"] for each in json.loads(done)]],
            "again": run("--", "true")["status"], "ended": again.end()}  # fmt: skip


def faults():
    """A short soak: one process of the service's is killed at a random moment, and then the service; `EXEAT_SEED` says which.

    Then nothing is left of any of it, what tasks changed is there and is merged whole, and none was let out.
    """
    work = Path.cwd() / "soak"
    work.mkdir()
    seed = int(os.environ.get("EXEAT_SEED", time.time_ns() % 1_000_000))
    sys.stderr.write(f"seed {seed}\n")  # shown where the scenario fails, whatever it fails of
    soak = Soak(work, seed)
    try:
        for kind in (soak.chance.choice((*OF_A_RUN, *OF_ALL)), "service", "nobody"):
            soak.round(3, kind)
        soak.settle()
        soak.end()
    finally:
        soak.close()
    return {"seed": seed, "wrong": soak.wrong, "ends": soak.ends.total(), "killed": soak.killed.total(),
            "answers": [answer.decode() for answer in soak.answers], "merged": soak.reviewed.merged}  # fmt: skip
