import pytest

from proxy.event_loop import poller
from proxy.gate import splice
from tests.proxy.gate.hostile_lab import looks  # noqa: F401 - a fixture
from tests.support import harness


@pytest.fixture(params=["compiled", "interpreted"])
def whoever(request, monkeypatch):
    """Whoever passes bytes on, both do the same."""
    if request.param == "interpreted":
        monkeypatch.setattr(splice, "COMPILED", None)
        monkeypatch.setattr(poller, "COMPILED", None)
    elif splice.COMPILED is None:
        harness.missing("a C compiler")
    return request.param
