"""The short form of `make fuzz`: the first inputs of a few seeds, for every target."""

from itertools import islice

import pytest

from tests.fuzz import inputs
from tests.fuzz.everything import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("seed", [1, 2])
def test_short_fuzzing_finds_nothing(name, seed):
    for data in islice(inputs(SEEDS[name], seed), 60 if name in {"file", "edited", "passed on"} else 300):
        TARGETS[name](data)


def test_every_seed_is_parsed_as_intended():
    assert set(SEEDS) == set(TARGETS)
    for name, seeds in SEEDS.items():
        for data in seeds:
            TARGETS[name](data)


def test_same_seed_gives_the_same_inputs():
    assert list(islice(inputs(SEEDS["name"], 7), 50)) == list(islice(inputs(SEEDS["name"], 7), 50))
