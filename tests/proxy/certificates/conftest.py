from tests.proxy.inspection.conftest import gate, origins  # noqa: F401 - fixtures
