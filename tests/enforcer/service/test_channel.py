"""What the other side of a channel doesn't take yet waits for it, in order, and nobody waits for the channel."""

import os
import selectors
import socket

from enforcer.service.channel import Channel
from proxy.wire import message


def test_queued_message_is_sent_when_the_peer_reads():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    heard, found = [], []
    with selectors.DefaultSelector() as selector, theirs:
        channel = Channel(ours, selector, lambda said, _given: heard.append(said))
        for number in range(40):
            channel.send({"number": number, "text": "x" * 1000}, [0] if number == 39 else [])
        assert selector.get_key(ours).events & selectors.EVENT_WRITE, "there was room for all of it"
        while len(found) < 40:
            found.append(message.receive(theirs, 1))
            for key, _ in selector.select(0):
                key.data()
        assert selector.get_key(ours).events == selectors.EVENT_READ
        message.send(theirs, {"heard": True})
        channel.turn()
        channel.close()
    assert [said["number"] for said, _ in found] == list(range(40))
    assert [len(given) for _, given in found] == [0] * 39 + [1]
    os.close(found[-1][1][0])
    assert heard == [{"heard": True}]
