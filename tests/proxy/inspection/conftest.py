import pytest

from proxy.inspection import engine
from tests.proxy.inspection.addon_harness import dump  # noqa: F401 - a fixture
from tests.proxy.inspection.asking_harness import desk  # noqa: F401 - a fixture
from tests.proxy.inspection.git_forge import forge, repositories  # noqa: F401 - fixtures
from tests.proxy.inspection.inspection_harness import Gate
from tests.proxy.inspection.inspection_origins import Origins
from tests.proxy.inspection.requests_harness import web  # noqa: F401 - a fixture
from tests.proxy.inspection.slices_harness import slowly  # noqa: F401 - a fixture


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
