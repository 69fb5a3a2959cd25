"""Homes in which something has run before, as nearly all are: what only the first run makes takes as long as a run.

That is the CA, the ruleset's bytes and Java's trust store. Each is made by a real run, once, and copied; everything
else (the journal and its keys, caches, changes) each home has of its own.
"""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from proxy.certificates.authority_file import fingerprint
from tests.support import harness

STATE = Path(".local/state/exeat")
MADE_ONCE = ("ca", "cache")
RULES = "version: 1\nname: first\nrules: []\n"


@contextmanager
def first():
    """A home in which one task has run."""
    with tempfile.TemporaryDirectory(prefix="exeat-home-") as directory:
        home, work = Path(directory, "home"), Path(directory, "work")
        home.mkdir()
        work.mkdir()
        (home / "rules.yaml").write_text(RULES)
        done = harness.exeat("run", "--quiet", "--rules", home / "rules.yaml", "--", "true", home=home, cwd=work)
        assert done.returncode == 0, done.stderr
        yield home


def furnish(home, like, uid):
    """Give a home, which is `uid`'s, what the first run made in another."""
    (home / STATE).mkdir(parents=True)
    (home / STATE).chmod(0o700)
    for name in MADE_ONCE:
        shutil.copytree(like / STATE / name, home / STATE / name)
    known = json.loads((like / STATE / "cache/ca.json").read_text())
    for path in (home / ".local", *(home / ".local").rglob("*")):
        os.chown(path, uid, uid)
    known["fingerprint"] = fingerprint((home / STATE / "ca/ca.pem").stat())  # by which a file is known: it is another
    (home / STATE / "cache/ca.json").write_text(json.dumps(known))
