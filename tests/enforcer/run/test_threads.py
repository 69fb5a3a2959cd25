"""No process of Exeat forks while it has more than one thread: a lock that another thread held would stay locked.

A service is looked at in tests/enforcer/service/service_lab.py.
"""

import pytest

RULES = "version: 1\nrules: [{id: asked, to: x.example, http: {methods: GET}, action: ask}]\n"
WARNED_OF = {"PYTHONWARNINGS": "always:This process"}  # Python's own check, when os.fork() is called


@pytest.mark.parametrize(
    "words",
    [("run", "--rules", "RULES", "--", "true"), ("doctor",), ("explain", "--rules", "RULES", "https://x.example/")],
)
def test_commands_fork_from_one_thread(someone, words):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    done = someone.exeat(*(rules if word == "RULES" else word for word in words), env=WARNED_OF)
    assert done.returncode == 0, done.stderr.decode()
    assert b"multi-threaded" not in done.stderr
