import pytest

from .world import world


@pytest.fixture(
    scope="session",
    params=[pytest.param(who, marks=pytest.mark.xdist_group(f"held-{who}")) for who in ("root", "user")],
)
def here(request):
    """A lab, a registry and its people, for root and for an ordinary user: made once each."""
    with world(request.param == "user") as made:
        yield made
