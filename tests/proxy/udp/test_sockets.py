"""What the gate writes by hand goes back into its sandbox, and to nobody else."""

from ipaddress import ip_address

import pytest

from proxy.udp.sockets import ReplySocket

OWN = ip_address("10.0.2.15"), ip_address("fd00::15")


class Raw:
    """A raw socket that keeps what it is told to send."""

    def __init__(self):
        self.sent = []

    def sendto(self, packet, address):
        self.sent.append((packet, address))


@pytest.mark.parametrize(
    ("asked", "client", "goes"),
    [
        ("93.184.216.10", "10.0.2.15", True),
        ("93.184.216.10", "127.0.0.1", True),
        ("2001:db8::1", "fd00::15", True),
        ("93.184.216.10", "10.0.2.16", False),  # not the sandbox's
        ("93.184.216.10", "93.184.216.11", False),
        ("2001:db8::1", "2001:db8::2", False),
        ("2001:db8::1", "10.0.2.15", False),  # of another family
    ],
)
def test_replies_and_errors_go_only_to_the_sandbox(asked, client, goes):
    ipv4, ipv6 = Raw(), Raw()
    answers = ReplySocket(ipv4, ipv6, OWN)
    ends = (ip_address(asked), 53), (ip_address(client), 7777)
    assert answers.reply(*ends, b"answer") is goes
    answers.refuse(*ends, 6)
    sent = ipv4.sent + ipv6.sent
    assert [to for _, to in sent] == [(client, 0)] * (2 if goes else 0)
