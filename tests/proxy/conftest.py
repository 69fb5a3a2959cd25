import contextlib
import gc

import pytest

from proxy.telemetry.journal.writer import Journal
from tests.proxy.loopback import let_out


@pytest.fixture(autouse=True, scope="module")
def what_others_left_is_not_walked_through():
    """Tests that count descriptors collect garbage, and what was there before them is none of theirs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def loopback_is_outside():
    with pytest.MonkeyPatch.context() as patched:
        let_out(patched.setattr)
        yield


@pytest.fixture(autouse=True, scope="module")
def journals_are_closed():
    """A process runs thousands of tests: what each leaves open adds up to more than it may have."""
    made, begin = [], Journal.__init__

    def remember(self, *arguments, **named):
        made.append(self)
        begin(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Journal, "__init__", remember)
        yield
    for journal in made:
        with contextlib.suppress(OSError, AttributeError):  # some are closed, or were never opened
            journal.close()
