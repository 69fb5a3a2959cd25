"""What who watches a task passes on of it."""

import socket
from types import SimpleNamespace

from enforcer.network.capture import LOGGED
from enforcer.supervise import Watch
from proxy import message


def test_counts_of_refused_packets_are_passed_on_when_they_are_others():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = []
    watch = Watch(SimpleNamespace(control=ours), SimpleNamespace(tell=told.append), None, None, 0.0)
    with ours, theirs:
        for counts in ({"udp": 0, LOGGED: 0}, {"udp": 0, LOGGED: 1}, {"udp": 3}, {"udp": 3}, {"udp": 3, "icmp": 1}):
            message.send(theirs, {"counters": counts})
            assert watch.hear_sandbox() is None
    assert told == [{"refused": each} for each in ({"udp": 0}, {"udp": 3}, {"udp": 3, "icmp": 1})]
    assert watch.counters == {"udp": 3, "icmp": 1}
