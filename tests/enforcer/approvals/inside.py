"""What the task of the end-to-end tests does in its sandbox: real clients, one attempt after the other, told as JSON."""

import json
import subprocess
import sys
import time

CURL = ["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}"]
AGENT = ["git", "-C", "clone", "-c", "user.name=agent", "-c", "user.email=agent@held.example"]
API = "https://api.held.example/ask"


def did(*words, given=None):
    done = subprocess.run(words, capture_output=True, text=True, input=given, timeout=90)
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


def asked(path, **body):
    """What the desk says."""
    words = [*CURL, f"http://exeat.internal{path}", "--header", "Accept: application/json"]
    if body:
        words += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
    return did(*words)


def everything():
    """Every attempt, in an order: what one made the next finds."""
    yield "free", did(*CURL, f"{API}/free")
    yield "approved", did(*CURL, "--data", "once", f"{API}/approved")
    yield "again", did(*CURL, "--data", "once", f"{API}/approved")
    yield "rejected", did(*CURL, "--data", "x", f"{API}/rejected")
    yield "forged", did(*CURL, "--data", "x", f"{API}/forged")
    yield "two", did(*CURL, "--data", "x", f"{API}/two")
    yield "clone", did("git", "clone", "--quiet", "https://git.held.example/acme.git", "clone")
    did(*AGENT, "commit", "--quiet", "--allow-empty", "--message", "mine")
    yield "branch", did(*AGENT, "push", "--quiet", "origin", "HEAD:refs/heads/topic")
    yield "both", did(*AGENT, "push", "--quiet", "origin", "HEAD:refs/heads/other", "HEAD:refs/heads/main")
    yield "main", did(*AGENT, "push", "--quiet", "origin", "HEAD:refs/heads/main")
    yield "release", did(*AGENT, "push", "--quiet", "origin", "HEAD:refs/heads/release/1")


def once(path):
    """One request."""
    return did(*CURL, "--data", "x", f"https://api.held.example{path}")


def until_through(path):
    """Ask again until it passes; what each try saw."""
    tries = [once(path)]
    while not tries[-1]["out"].endswith("200") and len(tries) < 100:
        time.sleep(0.1)
        tries.append(once(path))
    return tries


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    does = {
        "everything": lambda: dict(everything()),
        "once": lambda: [once(path) for path in words],
        "until": lambda: [until_through(path) for path in words],
    }
    print(json.dumps(does[what]()))
