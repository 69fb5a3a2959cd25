"""What `exeat attach` says of a namespace that it can't have."""

import os

import pytest

from enforcer.service.attach import open_target
from enforcer.system.errors import HostError, UsageError


def test_unenterable_namespace_is_a_host_error(monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(
        HostError,
        match="can't be opened: Permission denied; run `exeat attach` as the user of that process, or as root",
    ):
        open_target(str(os.getpid()))


def test_missing_namespace_is_a_usage_error():
    with pytest.raises(
        UsageError,
        match="`/nowhere/net` is not the pid of a process or the path of a network namespace: No such file or directory",
    ):
        open_target("/nowhere/net")
