import pytest
from addon_harness import dump  # noqa: F401 - a fixture
from asking_harness import desk  # noqa: F401 - a fixture
from git_forge import forge, repositories  # noqa: F401 - fixtures
from inspection_harness import Gate
from inspection_origins import Origins
from requests_harness import web  # noqa: F401 - a fixture
from slices_harness import slowly  # noqa: F401 - a fixture

from proxy.inspection import engine


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
