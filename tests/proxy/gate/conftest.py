from hostile_harness import looks  # noqa: F401 - a fixture
