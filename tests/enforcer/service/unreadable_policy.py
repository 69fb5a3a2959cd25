"""Scenario in which the service, or a worker, is handed a policy that it can't read."""

import subprocess
import sys
from pathlib import Path

from tests.enforcer.service.service_lab import EXEAT, FILE, KNOCK, RULES, Up, begin, journal, run
from tests.support.waiting import PATIENCE, wait_until

# A service that writes a policy wrongly where a rule's id says so: with a method that no policy has, or only half of it.
SERVICE = """
import io, pickle, sys
from proxy.worker import policy_transfer
from rules.matching.policy import Policy

send = policy_transfer.send

class Strange:
    def __reduce__(self):
        return getattr, (Policy(()), "__init__")

def send_wrongly(policy, file):
    ids = " ".join(map(str, policy.rule_ids))
    if "strange" in ids:
        pickle.dump((0, 0), file, 3)
        pickle.dump(Strange(), file, 3)
    elif "half" in ids:
        whole = io.BytesIO()
        send(policy, whole)
        file.write(whole.getvalue()[:len(whole.getvalue()) // 2])
    else:
        send(policy, file)

policy_transfer.send = send_wrongly
from enforcer.__main__ import main
sys.exit(main())
"""
KINDS = ("strange", "half")


def unreadable():
    """Runs whose policy can't be read, one that goes on beside them, and files that come to mean such a policy."""
    up = Up("--workers", "1", program=(sys.executable, "-P", "-c", SERVICE))
    beside = begin("--task", "beside", "--", "python3", "-c", KNOCK)
    seen = {"before": beside.stdout.readline()}
    for kind in KINDS:
        for where in (
            FILE.with_name(f"{kind}.yaml"),
            Path(f"{kind}.yaml"),
        ):  # one that a task may write has its own set
            where.write_text(RULES.replace("none", kind))
        seen[kind] = _run(FILE.with_name(f"{kind}.yaml"), "true"), _run(Path(f"{kind}.yaml"), "sleep", "300")
    seen["again"] = _run(FILE.with_name("half.yaml"), "true")[0]
    seen["good"] = run("--quiet", "--", "true")["status"]
    FILE.write_text(RULES.replace("none", "strange"))
    wait_until(lambda: [event for event in journal() if event["kind"] == "rules.rejected"], "the failure, recorded")
    seen["changed"] = run("--quiet", "--", "true")["status"]
    FILE.write_text(RULES)
    seen["right"] = run("--quiet", "--", "true")["status"]
    seen["still"] = [beside.stdout.readline() for _ in range(3)]
    beside.kill()
    beside.wait()
    wait_until(lambda: not up.listed())
    seen["rejected"] = [event for event in journal() if event["kind"] == "rules.rejected"]
    seen["workers"] = up.status()["restarts"]
    return {**seen, "ended": up.end()}


def _run(rules, *command):
    words = [EXEAT, "run", "--rules", str(rules), "--quiet", "--", *command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode, done.stderr
