"""Ids: UUIDv7 that only grow."""

import time
import uuid

from proxy.telemetry.ids import IdMaker


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_it():
    now = time.time_ns()
    made = uuid.UUID(IdMaker().make(now))
    assert made.variant == uuid.RFC_4122
    assert made.version == 7
    assert made.int >> 80 == now // 1_000_000


def test_ids_grow_also_within_one_instant_and_when_the_clock_is_set_back():
    ids = IdMaker()
    made = [ids.make(1_000_000_000_000) for _ in range(5000)] + [ids.make(1_000), ids.make(0), ids.make()]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_two_processes_never_make_the_same_id_at_the_same_time():
    first, second = IdMaker(), IdMaker()
    assert not {first.make(5) for _ in range(1000)} & {second.make(5) for _ in range(1000)}


def test_every_variant_digit_keeps_the_two_bits():
    ids = IdMaker()
    assert {ids.make()[19] for _ in range(500)} == set("89ab")
