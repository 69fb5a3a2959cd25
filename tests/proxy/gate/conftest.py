import gc

import pytest
from hostile_harness import looks  # noqa: F401 - a fixture

from proxy.event_loop import poller
from proxy.gate import splice
from tests import harness


@pytest.fixture(autouse=True, scope="module")
def what_others_left_is_not_walked_through():
    """Tests that count descriptors collect garbage, and what was there before them is none of theirs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["compiled", "interpreted"])
def whoever(request, monkeypatch):
    """Whoever passes bytes on, both do the same."""
    if request.param == "interpreted":
        monkeypatch.setattr(splice, "COMPILED", None)
        monkeypatch.setattr(poller, "COMPILED", None)
    elif splice.COMPILED is None:
        harness.missing("a C compiler")
    return request.param
