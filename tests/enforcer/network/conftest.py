import pytest

from enforcer.network.encode import encode
from enforcer.network.plan import network_plan
from tests.enforcer.network.netns_harness import Namespace, Network
from tests.support import harness


@pytest.fixture(scope="session")
def encoded():
    return encode(network_plan())


@pytest.fixture(params=["root", "user"])
def rootless(request):
    """Both ways in which a sandbox is made. Only root can test the first."""
    if request.param == "root":
        harness.needs_root()
    return request.param == "user"


@pytest.fixture(params=["root", "user"], scope="module")
def network_for_all(request, encoded):
    """Serve a whole module with one sandbox's network, for tests that leave nothing in it."""
    if request.param == "root":
        harness.needs_root()
    made = Network(encoded, rootless=request.param == "user")
    yield made
    made.close()


@pytest.fixture
def namespace(rootless):
    made = Namespace(rootless=rootless)
    yield made
    made.close()


@pytest.fixture
def network(rootless, encoded):
    made = Network(encoded, rootless=rootless)
    yield made
    made.close()
