"""Ids: UUIDv7 that only grow."""

import os
import time
import uuid

from proxy.sandbox.recorder import _ids
from proxy.telemetry.events import IdMaker


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


def test_after_a_fork_both_sides_have_noise_of_their_own():
    reader, writer = os.pipe()
    before = _ids.make()
    child = os.fork()
    if not child:
        os.write(writer, "".join(_ids.make()[-16:] for _ in range(32)).encode())
        os._exit(0)
    os.close(writer)
    here = {_ids.make()[-16:] for _ in range(32)}
    with os.fdopen(reader) as said:
        there = said.read()
    os.waitpid(child, 0)
    assert before
    assert len(there) == 32 * 16
    assert not here & {there[at : at + 16] for at in range(0, len(there), 16)}
