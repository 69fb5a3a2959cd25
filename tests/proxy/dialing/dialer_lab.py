"""A dialer on its own: its rules, the host's file of names, name servers that know what they are told to."""

import asyncio
from ipaddress import ip_address

from proxy.dialing.address_check import DialError
from proxy.dialing.dialer import Dialer
from proxy.dns.lookup import HostsFile, Lookup
from proxy.event_loop.poller import Poller
from proxy.telemetry.prometheus.metrics import Metrics
from rules.attempt import Attempt, Protocol
from rules.values.names import HostName
from tests.proxy.gate.gate_lab import Names, policy_of, run

RULES = (
    "id: good, to: good.example, ports: [443, 1-65535/tls], action: allow",
    "id: inside, to: inside.example, ports: [1-65535/tls], action: allow, resolves_to: [127.0.0.0/8, '::1', 10.0.0.0/8]",
    "id: literal, to: [127.0.0.1, 93.184.216.34], ports: [1-65535/tls], action: allow",
    "id: never, to: 8.8.8.8, action: deny",
)
PUBLIC, OTHER = ip_address("93.184.216.34"), ip_address("93.184.216.35")


def attempt(target, port=443):
    return Attempt(Protocol.TLS, HostName(target) if isinstance(target, str) else target, port)


async def dial(dialer, policy, wanted):
    """Look up, check and connect, as a connection does; return the socket and its address. Raises DialError."""
    loop = asyncio.get_running_loop()
    hops, answer = dialer.known(policy, wanted), loop.create_future()
    if hops is None:
        dialer.find(policy, wanted, answer.set_result)
        hops = await asyncio.wait_for(answer, 10)
        if isinstance(hops, DialError):
            raise hops
    connected = loop.create_future()
    dialer.connect(hops, wanted.port, lambda *got: connected.set_result(got))
    sock, address = await asyncio.wait_for(connected, 10)
    if isinstance(sock, DialError):
        raise sock
    return sock, address


class Setting:
    def __init__(self, tmp_path, hosts="", forbidden=()):
        self.policy = policy_of(tmp_path, RULES)
        (tmp_path / "hosts").write_text(hosts)
        self.servers, self.metrics, self.poller = Names(), Metrics(), Poller()
        self.lookup = Lookup(HostsFile(str(tmp_path / "hosts")), lambda: self.servers)
        self.dialer = Dialer(self.lookup, self.poller, forbidden=forbidden, metrics=self.metrics)

    def known(self, target, port=443):
        """The addresses as text, or why there are none."""
        try:
            found = self.dialer.known(self.policy, attempt(target, port))
        except DialError as failure:
            return failure.reason.value
        return None if found is None else " ".join(map(str, found))

    async def found(self, target, port=443):
        answer = asyncio.get_running_loop().create_future()
        self.dialer.find(self.policy, attempt(target, port), answer.set_result)
        result = await asyncio.wait_for(answer, 10)
        return result.reason.value if isinstance(result, DialError) else " ".join(map(str, result))


def setting(tmp_path, test, **more):
    async def inside():
        await test(Setting(tmp_path, **more))

    run(inside)
