"""Whom the gate of a task under a service trusts: the host's roots as they are when the task starts."""

import subprocess

import pytest

from tests.lab import Lab, Name
from tests.support import harness

RULES = "version: 1\nname: t\nrules:\n  - {id: good, to: good.example, action: allow}\n"


@pytest.fixture
def lab():
    harness.needs_root()
    with Lab({"good.example": Name.at("93.184.216.34")}) as made:
        yield made


def test_tasks_trust_the_current_roots_of_the_host(lab):
    bundle = lab.directory / "etc/ca-certificates.crt"
    with_ours, ours = bundle.read_bytes(), lab.ca.read_bytes()
    home, work = lab.home(), lab.workspace()
    rules = work / "rules.yaml"
    rules.write_text(RULES)
    run = ["exeat", "run", "--quiet", "--rules", rules, "--"]
    ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "https://good.example/echo"]

    def asked():
        return lab.run([*run, *ask], cwd=work, env=more).stdout

    more = {"EXEAT_CONTROL": str(home / "control")}
    bundle.write_bytes(with_ours.replace(ours, b""))
    up = lab.start(["exeat", "up", "--workers", "1"], env=more, stderr=subprocess.PIPE, text=True)
    try:
        assert "serving" in up.stderr.readline()
        assert asked() == "502"
        bundle.write_bytes(with_ours)  # an admin adds a root,
        wait = [*run, "sh", "-c", 'echo ready; read go; exec "$@"', "-", *ask]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with lab.start(wait, cwd=work, env=more, **pipes) as before:
            assert before.stdout.readline() == "ready\n"
            assert asked() == "200"
            bundle.write_bytes(with_ours.replace(ours, b""))  # and takes it away:
            assert asked() == "502"
            assert before.communicate("go\n", timeout=60)[0] == "200", "that one keeps what it started with"
    finally:
        up.terminate()
        up.communicate(timeout=60)
