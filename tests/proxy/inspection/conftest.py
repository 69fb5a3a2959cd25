import pytest

from proxy.inspection import engine
from tests.proxy.inspection.approvals_lab import approvals_lab  # noqa: F401 - a fixture
from tests.proxy.inspection.git_forge import forge, repositories  # noqa: F401 - fixtures
from tests.proxy.inspection.inspection_lab import (
    GateLab,
    slow_scan,  # noqa: F401 - a fixture
    web,  # noqa: F401 - a fixture
)
from tests.proxy.inspection.mitmdump_lab import mitmdump  # noqa: F401 - a fixture
from tests.proxy.inspection.origins import Origins


@pytest.fixture(scope="module")
def origins(tmp_path_factory):
    servers = Origins(tmp_path_factory.mktemp("origins"))
    yield servers
    servers.close()


@pytest.fixture
def gate(tmp_path, origins):
    lab = GateLab(tmp_path, origins)
    yield lab
    lab.close()


@pytest.fixture
def frequent_ticks(monkeypatch):
    """Check timeouts ten times as often."""
    monkeypatch.setattr(engine, "EVERY", 0.1)
