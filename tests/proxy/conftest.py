import pytest

from tests.proxy.loopback import let_out


@pytest.fixture(autouse=True, scope="module")
def loopback_is_outside():
    with pytest.MonkeyPatch.context() as patched:
        let_out(patched.setattr)
        yield
