"""All targets, and what each begins with."""

from tests.fuzz import arriving, leaving, targets

TARGETS = {**targets.TARGETS, **arriving.TARGETS, **leaving.TARGETS}
SEEDS = {**targets.SEEDS, **arriving.SEEDS, **leaving.SEEDS}
