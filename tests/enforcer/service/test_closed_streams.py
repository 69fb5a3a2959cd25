"""A service that was started without standard streams, as by a shell's `<&- >&- 2>&-`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXEAT = Path(sys.executable).with_name("exeat")
PATIENCE = 60  # seconds


@pytest.fixture
def place(tmp_path):
    (tmp_path / "rules.yaml").write_text("version: 1\nname: nothing\nrules: []\n")
    (tmp_path / "work").mkdir()
    control = tmp_path / "service" / "control"
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "EXEAT_CONTROL": str(control)}
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", EXEAT, "up", "--workers", "1"]
    with subprocess.Popen(closed, env=env) as up:
        ends = time.monotonic() + PATIENCE
        while not control.exists() and time.monotonic() < ends:
            time.sleep(0.01)
        yield tmp_path, env
        up.terminate()


def test_run_of_a_service_without_streams_has_the_callers(place):
    at, env = place
    task = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    for words in ([], ["--quiet"]):
        done = subprocess.run(
            [EXEAT, "run", "--rules", at / "rules.yaml", *words, "--", *task],
            env=env,
            cwd=at / "work",
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert (done.stdout, done.stderr.splitlines()[0], done.returncode) == ("out\n", "err", 3)
