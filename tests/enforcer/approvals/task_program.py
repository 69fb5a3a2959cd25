"""What the task of the end-to-end tests does in its sandbox: real clients, one attempt after the other, told as JSON."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

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


def together(*paths):
    """Several requests at once."""
    with ThreadPoolExecutor(len(paths)) as threads:
        return list(threads.map(once, paths))


def until_through(path):
    """Ask again until it passes; what each try saw."""
    tries = [once(path)]
    while not tries[-1]["out"].endswith("200") and len(tries) < 100:
        time.sleep(0.1)
        tries.append(once(path))
    return tries


def unruled(path):
    """Ask the desk for what no rule speaks of, and try it until it passes; the last try's status."""
    asked("/requests", attempt=f"POST https://api.held.example{path}", why="to say what nobody thought of")
    return until_through(path)[-1]


def reach(path, named):
    """Everything that a task might do about the registry's socket, and what came of it."""
    seen = {}
    for way, at in (("path", path), ("by another name", f"/proc/1/root{path}"), ("abstract", f"\0{path}")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            try:
                sock.connect(at)
                sock.send(json.dumps({"exeat": 1, "what": "list"}).encode())
                seen[way] = sock.recv(9999).decode()
            except OSError as error:
                seen[way] = errno.errorcode[error.errno]
    try:
        seen["listed"] = os.listdir(os.path.dirname(path))
    except OSError as error:
        seen["listed"] = errno.errorcode[error.errno]
    # What is said to whatever was inherited
    answer = json.dumps({"exeat": 1, "what": "answer", "id": named, "vote": "approve"}).encode()
    for number in range(256):
        with contextlib.suppress(OSError):
            os.write(number, answer)
    seen["sockets"] = [number for number in os.listdir("/proc/self/fd") if is_socket(number)]
    with open("reached.json", "w") as file:
        json.dump(seen, file)


def wish(foreign):
    """Ask the desk beforehand, look what became of it, look at another task's, and try to answer."""
    seen = {"wish": asked("/requests", attempt=f"POST {API}/wished", why="to publish the report")}
    named = json.loads(seen["wish"]["out"].rsplit("\n", 1)[0])["approval"]
    seen["foreign"] = asked(f"/requests/{foreign}")
    seen["answers"] = [
        asked(f"/requests/{named}", answer="approve"),
        asked(f"/requests/{named}/approve", why="I say so"),
        asked("/approvals", id=named, vote="approve"),
        did(*CURL, "--request", "PUT", "--data", "approved", f"http://exeat.internal/requests/{named}"),
    ]
    for _ in range(600):
        seen["looked"] = asked(f"/requests/{named}")
        if "pending" not in seen["looked"]["out"]:
            break
        time.sleep(0.2)
    seen["used"] = once("/ask/wished")
    print(json.dumps(seen))


def is_socket(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    except OSError:
        return False


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    does = {
        "everything": lambda: dict(everything()),
        "once": lambda: [once(path) for path in words],
        "together": lambda: together(*words),
        "reach": lambda: reach(*words),
        "unruled": lambda: unruled(*words),
        "until": lambda: [until_through(path) for path in words],
    }
    if what == "wish":
        wish(*words)
    else:
        print(json.dumps(does[what]()))
