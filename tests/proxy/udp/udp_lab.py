"""A gate for datagrams with everything around it real but the kernel's part, which test_udp_door tries."""

import contextlib
import socket
import struct
from ipaddress import ip_address

from proxy.udp.listener import MOST_FLOWS, UdpGate
from proxy.udp.sockets import block_datagrams
from rules.values.names import HostName
from tests.proxy.gate.gate_lab import GateLab, open_descriptors, policy_of, run
from tests.support.ports import free_port
from tests.support.waiting import wait_until_async

CLIENT = ip_address("192.0.0.2")
HOST = "host.exeat.internal"  # the one name that is the loopback, where the origins of these tests are
UDP = f"id: u, to: {HOST}, ports: PORT/udp, action: allow"
ELSEWHERE = "id: e, to: elsewhere.example, ports: 123/udp, action: allow"


class Recorded:
    """What is sent back into the sandbox."""

    def __init__(self):
        self.replies = []
        self.refused = []
        self.full = False

    def reply(self, asked, client, payload):
        if not self.full:
            self.replies.append((asked, client, payload))
        return not self.full

    def refuse(self, asked, client, size):
        self.refused.append((asked, client, size))


class Server:
    """A server outside, and whom it has heard."""

    def __init__(self):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]

    def take(self):
        with contextlib.suppress(BlockingIOError):
            return self.sock.recvfrom(65535)
        return None

    async def hear(self):
        got = []
        await wait_until_async(lambda: got.append(self.take()) or got[-1] is not None)
        return got[-1]


class Udp:
    """A gate for datagrams. Those of the task are handed to it as the kernel would."""

    def __init__(self, world, most):
        self.world = world
        self.answers = Recorded()
        self.door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # By its number: a port that the kernel chose would be given up as soon as the door is opened.
        self.door.bind(("127.0.0.1", free_port(kind=socket.SOCK_DGRAM)))
        block_datagrams(self.door, ())
        self.now = 1000.0
        self.gate = UdpGate(
            self.door, self.answers, world.sandbox, world.recorder,
            dialer=world.dialer, names=world.names, most=most, clock=lambda: self.now,
        )  # fmt: skip
        self.gate.start()

    def send(self, to, port, data=b"question", client=40000):
        """A datagram from a port of the task's to a name, as its resolver would have answered it, or an address."""
        address = self.world.names.address_for(HostName(to), denied=False) if isinstance(to, str) else to
        if address.version == 4:
            sockaddr = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + address.packed + bytes(8)
        else:
            zone = int(address.scope_id or 0)
            sockaddr = (
                struct.pack("=H", socket.AF_INET6)
                + struct.pack("!HI", port, 0)
                + address.packed
                + struct.pack("=I", zone)
            )
        self.gate._handle_datagram(data, sockaddr, (f"::ffff:{CLIENT}", client, 0, 0))

    def reload(self, tmp_path, *rules, **settings):
        self.world.sandbox.policy = policy_of(tmp_path, rules, **settings)
        self.world.lookup.forget_checks()
        self.gate.review()


def tried(test, tmp_path, *rules, most=MOST_FLOWS, hosts="", **settings):
    """Run a test with a gate, a server whose port is PORT in the rules, and nothing left over afterwards."""
    before = open_descriptors()

    async def around():
        server = Server()
        written = [rule.replace("PORT", str(server.port)) for rule in rules]
        async with GateLab(tmp_path, written, hosts=hosts, **settings) as world:
            udp = Udp(world, most)
            try:
                await test(world, udp, server)
                assert not world.errors
            finally:
                udp.gate.close()
                udp.door.close()
                server.sock.close()
            assert (udp.gate.flows, udp.gate.queued_bytes, world.metrics.connections_open) == (0, 0, 0)

    run(around)
    assert open_descriptors() <= before


def reasons(events):
    return [(event["outcome"], event.get("reason")) for event in events]
