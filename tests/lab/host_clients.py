"""Clients on the host side of the lab, for the tests of the lab."""

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
