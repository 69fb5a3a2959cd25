"""All targets, and what each begins with."""

from tests.fuzz import arriving, asked, leaving, passed, targets

TARGETS = {**targets.TARGETS, **arriving.TARGETS, **leaving.TARGETS, **asked.TARGETS, **passed.TARGETS}
SEEDS = {**targets.SEEDS, **arriving.SEEDS, **leaving.SEEDS, **asked.SEEDS, **passed.SEEDS}
