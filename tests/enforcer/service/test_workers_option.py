"""How many workers `exeat up` begins with."""

import os

import pytest

from enforcer.cli import main
from enforcer.cli.service import count_workers


@pytest.mark.parametrize("wanted", ["0", "-1", "65"])
def test_invalid_number_of_workers_is_refused(monkeypatch, capsys, wanted):
    monkeypatch.setenv("EXEAT_CONTROL", "/dev/null/none")  # it would fail there, and not serve
    assert main(["up", "--workers", wanted]) == 2
    assert "for `--workers`: use 1 to 64" in capsys.readouterr().err


@pytest.mark.parametrize(("cores", "workers"), [(2, 2), (64, 64), (96, 64)])
def test_default_is_one_worker_per_core_up_to_a_limit(monkeypatch, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    assert count_workers(None) == workers
    assert count_workers(3) == 3
