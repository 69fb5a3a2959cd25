"""The desktop's keyring as it is: gnome-keyring on a session bus of its own, asked as `exeat run` asks it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import program

STORE = """
printf pass | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1
printf sk-keyring-0123456789 | secret-tool store --label=test service exeat account model
exec "$@"
"""
ASK = """
from enforcer.worker import credentials
from enforcer.system.errors import HostError
from rules.loading.load import load
policy = load(["rules.yaml"])
try:
    print(*(held.value.decode() for held in credentials.broker(policy, {})._secret_values))
except HostError as error:
    print(error)
"""
RULES = """
version: 1
secrets: [{id: key, from: {keyring: {%s}}, as: KEY, hosts: good.example, in: basic}]
rules: []
"""


@pytest.mark.parametrize(
    ("attributes", "said"),
    [("service: exeat, account: model", "sk-keyring-0123456789"), ("service: other", "it isn't there")],
)
def test_keyring(tmp_path, attributes, said):
    for tool in ("gnome-keyring-daemon", "secret-tool", "dbus-run-session"):
        program(tool)
    (tmp_path / "rules.yaml").write_text(RULES % attributes)
    bus = [shutil.which("dbus-run-session"), "--", "sh", "-c", STORE, "sh", sys.executable, "-c", ASK]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        bus,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said in done.stdout, done
