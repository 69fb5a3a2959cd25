"""What the supervisor tells the worker arrives whole, whatever is in it: one that can't be read ends the worker."""

import socket

import pytest

from enforcer.reloading import _LONGEST, _MOST_PROBLEMS
from proxy import message


@pytest.mark.parametrize("letter", ["x", "\u00fc", "\u4e2d", "\U0001f600", "\x01", '"', "\udcff"], ids=ascii)
def test_the_longest_problems_of_rules_arrive(letter):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = {"rules_rejected": [letter * _LONGEST] * _MOST_PROBLEMS}
    with here, there:
        message.send(here, told)
        assert message.receive(there) == (told, [])
