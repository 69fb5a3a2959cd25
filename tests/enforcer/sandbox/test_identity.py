"""Which range of ids a sandbox of root's gets."""

import os

import pytest

from enforcer.sandbox import identity
from enforcer.system.errors import HostError


@pytest.fixture
def taken():
    """Descriptors of what is locked, closed at the end."""
    held = []
    yield held
    for descriptor in held:
        os.close(descriptor)


def take(taken):
    number, slot = identity._take_slot()
    taken.append(slot)
    return number


def test_identities_differ_until_none_is_free(tmp_path, monkeypatch, taken):
    monkeypatch.setattr(identity, "SLOT_FILE", tmp_path / "ranges")
    monkeypatch.setattr(identity, "SLOTS", 8)
    assert sorted(take(taken) for _ in range(8)) == list(range(8))
    with pytest.raises(HostError, match="all 8 id ranges are in use"):
        take(taken)
    os.close(taken.pop(3))
    take(taken)


def test_roots_of_two_containers_choose_different_identities(tmp_path, monkeypatch, taken):
    found = []
    for name in ("one", "other"):
        monkeypatch.setattr(identity, "SLOT_FILE", tmp_path / name / "ranges")
        found.append([take(taken) for _ in range(8)])
    assert found[0] != found[1]  # by chance once in 2**96
