"""Machines, registries, and the command on them."""

import os

import pytest

from enforcer.cli import main
from enforcer.presets.client import Machine
from tests.enforcer.presets.registry_lab import RegistryLab


@pytest.fixture
def registry():
    registry = RegistryLab()
    yield registry
    registry.server.shutdown()
    registry.server.server_close()


@pytest.fixture
def host(tmp_path):
    """A machine with nothing on it."""
    for name in ("root/etc", "home/.config/pip", "work"):
        (tmp_path / name).mkdir(parents=True)
    return Machine(tmp_path / "home", (tmp_path / "work",), tmp_path / "root")


@pytest.fixture
def exeat(host, registry, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("enforcer.presets.client.this_machine", lambda _: host)
    monkeypatch.setattr("enforcer.presets.fetch.Web", registry.web)
    monkeypatch.setattr("enforcer.presets.pip.sysconfig.get_path", lambda _: str(host.home))
    monkeypatch.setattr("rules.loading.preset_locks._SYSTEM_LOCK", tmp_path / "etc/presets.lock")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(*words):
        code = main(["presets", *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    run.path = tmp_path / ("etc/presets.lock" if os.geteuid() == 0 else "config/exeat/presets.lock")
    return run
