import pytest

from proxy.inspection import engine
from tests.proxy.inspection.approvals_lab import desk  # noqa: F401 - a fixture
from tests.proxy.inspection.git_forge import forge, repositories  # noqa: F401 - fixtures
from tests.proxy.inspection.inspection_lab import (
    Gate,
    slowly,  # noqa: F401 - a fixture
    web,  # noqa: F401 - a fixture
)
from tests.proxy.inspection.mitmdump_lab import dump  # noqa: F401 - a fixture
from tests.proxy.inspection.origins import Origins


@pytest.fixture(scope="module")
def origins(tmp_path_factory):
    made = Origins(tmp_path_factory.mktemp("origins"))
    yield made
    made.close()


@pytest.fixture
def gate(tmp_path, origins):
    made = Gate(tmp_path, origins)
    yield made
    made.close()


@pytest.fixture
def often(monkeypatch):
    """Have each connection look at the time ten times as often."""
    monkeypatch.setattr(engine, "EVERY", 0.1)
