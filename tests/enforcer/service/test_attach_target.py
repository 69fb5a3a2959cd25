"""What `exeat attach` says of a namespace that it can't have."""

import os

import pytest

from enforcer.service.attach import open_target
from enforcer.system.errors import HostError, UsageError


def test_what_may_not_be_entered_is_no_mistake_in_the_words(monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(
        HostError,
        match="can't be opened: Permission denied; run `exeat attach` as the user of that process, or as root",
    ):
        open_target(str(os.getpid()))


def test_what_is_not_there_is_one():
    with pytest.raises(
        UsageError,
        match="`/nowhere/net` is not the pid of a process or the path of a network namespace: No such file or directory",
    ):
        open_target("/nowhere/net")
