"""Scenario in which tasks can't be served by the service's workers: it knows of them all the same."""

import os
import subprocess
import time

from tests.enforcer.service.service_lab import EXEAT, FILE, IMPATIENT, KNOCK, RULES, Up, journal, run, scraped, shown
from tests.support.waiting import PATIENCE, wait_until

SECRET = FILE.with_name("secret.yaml")
WAIT = ("sh", "-c", "echo ready; trap 'exit 3' TERM; while :; do sleep 0.1; done")


def alone():
    """A task with a secret and one after `exeat ca rotate` are listed, told of, counted, stopped and killed."""
    up = Up("--workers", "1", "--metrics", "127.0.0.1:0", program=IMPATIENT)
    scrape = f"http://127.0.0.1:{up.said.rstrip().rpartition(':')[2]}/metrics"
    secret = "{id: key, from: {env: KEY}, as: TASK_KEY, hosts: allowed.example, in: {header: authorization}}"
    SECRET.write_text(f"{RULES}secrets:\n  - {secret}\n")
    tasks = [_begin(SECRET, "secret")]
    assert (said := tasks[0].stdout.readline()) == "ready\n", tasks[0].stderr.read()
    subprocess.run([EXEAT, "ca", "rotate"], check=True, capture_output=True)
    tasks.append(_begin(FILE, "rotated"))
    assert (said := tasks[1].stdout.readline()) == "ready\n", said
    seen = {
        "listed": sorted((each["name"], each["worker"], each["pid"] > 0) for each in shown("ps")),
        "status": {each["name"]: each["why"] for each in up.status()["alone"]},
        "words": subprocess.run([EXEAT, "status"], capture_output=True, text=True, check=False).stdout,
    }
    knocked = _begin(SECRET, "short", "python3", "-c", KNOCK.replace("while True", "for _ in range(2)"))
    seen["knocked"] = knocked.communicate()[0].split(), knocked.returncode
    wait_until(lambda: _counted(scrape) == [2.0, 2.0, 1.0], "the counts of all three")
    seen["own"] = run("--quiet", "--metrics", up.said.rstrip().rpartition(" ")[2], "--", "true")
    seen["stopped"] = [
        subprocess.run([EXEAT, "stop", *name.split()], capture_output=True, text=True, check=False).returncode
        for name in ("secret", "--kill rotated")
    ]
    seen["ends"] = [task.wait(PATIENCE) for task in tasks]
    seen["errors"] = [task.stderr.read() for task in tasks]
    wait_until(lambda: not up.listed(), "the end of both")
    seen["left"] = up.status()["alone"]
    wait_until(lambda: _counted(scrape) == [0.0, 2.0, 3.0], "what was counted of tasks that are over")
    told = [event for event in journal() if event["kind"] == "task.ended" and event["task"]["name"] == "rotated"]
    seen["told"] = [(event["outcome"], event["ending"]) for event in told]
    without = run("--no-service", "--quiet", "--", "true"), run("--no-service", "--dry-run", "--", "true")
    seen["without"] = [each["err"] for each in without]
    seen["others"] = [_on_a_terminal("shell"), *([_with_other_groups()] if os.geteuid() == 0 else [])]
    seen["next"] = run("--quiet", "--", "true")["status"]
    seen["ended"] = up.end()
    seen["nobody"] = run("--no-service", "--quiet", "--", "true")["err"]
    return seen


def _on_a_terminal(command):
    """What a command that wants a terminal says on standard error, once it is told to exit."""
    ours, theirs = os.openpty()
    os.write(ours, b"exit\n")
    words = [EXEAT, command, "--rules", str(FILE), "--quiet"]
    env = {**os.environ, "SHELL": "/bin/sh", "PS1": "", "ENV": ""}
    done = subprocess.run(words, stdin=theirs, capture_output=True, text=True, env=env, check=False, timeout=PATIENCE)
    os.close(ours)
    os.close(theirs)
    return done.stderr


def _with_other_groups():
    """What a run says that the service declines."""
    words = [EXEAT, "run", "--rules", str(FILE), "--quiet", "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, extra_groups=[54321], check=False, timeout=PATIENCE)
    return done.stderr


def _counted(scrape):
    """How many sandboxes there are, were refused something, and ended."""
    time.sleep(0.1)  # they are told every 0.2 seconds
    names = ("exeat_sandboxes ", "exeat_decisions_total{", "exeat_tasks_total{")
    lines = scraped(scrape).splitlines()
    return [sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)) for name in names]


def _begin(rules, name, *command):
    words = [EXEAT, "run", "--rules", str(rules), "--quiet", "--task", name, "--", *(command or WAIT)]
    key = {"KEY": "a-secret-value-of-some-length"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **key})
