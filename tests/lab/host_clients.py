"""Clients run on the lab's host side, for the lab's own tests."""

import json

from tests.lab import Lab

USERS = [None, Lab.ORDINARY]
CURL = ["curl", "-sS", "--max-time", "20"]


def curl(lab, *arguments, user=None):
    return lab.run([*CURL, *arguments], user=user)


def python(lab, program, *arguments, user=None):
    """Run a few lines on the host side and return what they print, as JSON."""
    done = lab.run(["python", "-c", f"import json, os, socket, sys\n{program}", *arguments], user=user)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
