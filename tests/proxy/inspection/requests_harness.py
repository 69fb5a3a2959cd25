"""Origins in the clear and over TLS."""

import pytest

WEB = pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])


@pytest.fixture
def web(origins):
    def make(*, tls=True, **more):
        return origins.web("good.example", tls=tls, **more)

    return make
