"""Scenario in which tasks can't be served by the service's workers: it knows of them all the same."""

import os
import subprocess

from tests.enforcer.service.cast import EXEAT, FILE, PATIENCE, RULES, Up, run, shown, until

SECRET = FILE.with_name("secret.yaml")
WAIT = ("--", "sh", "-c", "echo ready; trap 'exit 3' TERM; while :; do sleep 0.1; done")


def alone():
    """A task with a secret and one after `exeat ca rotate` are listed, told of and stopped."""
    up = Up("--workers", "1")
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
    seen["stopped"] = [
        subprocess.run([EXEAT, "stop", name], capture_output=True, text=True, check=False).returncode
        for name in ("secret", "rotated")
    ]
    seen["ends"] = [task.wait(PATIENCE) for task in tasks]
    seen["errors"] = [task.stderr.read() for task in tasks]
    until(lambda: not up.listed(), "the end of both")
    seen["left"] = up.status()["alone"]
    seen["next"] = run("--quiet", "--", "true")["status"]
    seen["ended"] = up.end()
    return seen


def _begin(rules, name):
    words = [EXEAT, "run", "--rules", str(rules), "--quiet", "--task", name, *WAIT]
    key = {"KEY": "a-secret-value-of-some-length"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **key})
