"""The plan as values, its encoding, and what executing it does to a namespace."""

import errno
import os
import socket
import struct
import sys
from pathlib import Path

import pytest

from enforcer.network.constants import GATE_PORT, OWN_ADDRESSES, TABLE
from enforcer.network.encode import encode
from enforcer.network.gate_sockets import open_counter_socket, read_counters
from enforcer.network.install import Installed, StepFailedError, execute, make_batch
from enforcer.network.plan import Batch, network_plan
from enforcer.network.ruleset import Chain, Expression, Rule, Verdict, ruleset
from proxy.wire.netlink import NETLINK_NETFILTER, NLM_F_ACK
from proxy.wire.refusal_log import Kind
from tests.enforcer.network.netns_harness import Network, outcome


def test_plan_describes_every_step_in_order():
    lines = network_plan().describe()
    assert lines[:5] == (
        "bring `lo` up",
        "add the address 192.0.0.2 to `lo`",
        "route 0.0.0.0/0 to `lo`, from 192.0.0.2",
        "add the address fd65:7865:6174::2 to `lo`",
        "route ::/0 to `lo`, from fd65:7865:6174::2",
    )
    assert "rule of `leaving`: every TCP connection goes to the gate, if it listens" in lines
    assert len(lines) == sum(len(batch.statements) for batch in network_plan().batches[:-1])


def test_own_addresses_are_outside_the_synthetic_pool():
    from ipaddress import ip_network

    assert not any(address in ip_network("198.18.0.0/15") for address in OWN_ADDRESSES)


def test_plans_are_equal_for_equal_ports():
    assert network_plan() == network_plan(GATE_PORT)
    assert network_plan(15002) != network_plan()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_invalid_gate_port_is_refused(port):
    with pytest.raises(ValueError, match=f"`{port}` is not a port"):
        network_plan(port)


def test_ruleset_without_log_lacks_only_log_rules():
    logged, unlogged = ruleset(GATE_PORT), ruleset(GATE_PORT, log=False)
    assert tuple(s for s in logged if not (isinstance(s, Rule) and s.logs)) == unlogged
    assert len(logged) - len(unlogged) == len(Kind)


def test_unknown_statement_is_an_error():
    plan = network_plan()._replace(link=Batch(0, ("nonsense",)))
    with pytest.raises(TypeError, match="nonsense"):
        encode(plan)


def test_batch_must_match_its_statements():
    message = struct.pack("=IHHII", 16, 16, NLM_F_ACK, 0, 0)
    with pytest.raises(ValueError, match="2 encoded messages for a batch of 1 statements"):
        make_batch((message, message), ("bring `lo` up",))


def has_table():
    with open_counter_socket() as sock:
        return bool(outcome(lambda: read_counters(sock)))


def test_execute_makes_addresses_routes_and_ruleset(namespace, encoded):
    def make():
        installed = execute(encoded)
        return installed, Path("/proc/self/net/fib_trie").read_text(), Path("/proc/self/net/if_inet6").read_text()

    installed, ipv4, ipv6 = namespace.as_owner(make)
    assert installed == Installed(ipv6=True, refusal_log=True)
    assert "192.0.0.2" in ipv4
    assert "+-- 0.0.0.0/0" in ipv4
    # Flags 0x82: permanent and without duplicate address detection, so never tentative.
    assert "fd657865617400000000000000000002 01 80 00 82" in ipv6


def test_only_device_is_lo(network):
    lines = network.run(lambda: Path("/proc/self/net/dev").read_text()).splitlines()
    assert [line.split(":")[0].strip() for line in lines[2:]] == ["lo"]


def test_failed_step_is_named_with_its_errno(namespace, encoded):
    def twice():
        execute(encoded)
        execute(encoded)

    with pytest.raises(OSError, match=r"cannot add the address 192\.0\.0\.2 to `lo`: File exists") as caught:
        namespace.as_owner(twice)
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("name", ["link", "ipv4", "ipv6", "ruleset"])
def test_each_failing_step_ends_the_installation(namespace, encoded, name):
    """Only the last of a batch asks for an answer; of one of a kind that nobody knows the kernel tells unasked."""
    batch = getattr(encoded, name)

    def broken(number):
        data, at = bytearray(batch.data), 0
        for _ in range(1, number):
            at += int.from_bytes(data[at : at + 4], sys.byteorder)  # nlmsg_len
        data[at + 4] = 0xFE  # nlmsg_type: of its family, and no message of it
        return encoded._replace(**{name: batch._replace(data=bytes(data))})

    def attempt():
        told = []
        for number in range(batch.first, batch.last + 1):
            try:
                execute(broken(number), is_repeated=True)
                told.append("")
            except StepFailedError as error:
                told.append(error.statement)
        return told, has_table()

    told, table = namespace.as_owner(attempt)
    assert told == list(range(len(getattr(network_plan(), name).statements)))
    assert not table


def test_without_capabilities_the_first_step_fails(namespace, encoded):
    with pytest.raises(OSError, match="cannot bring `lo` up") as caught:
        namespace.run(lambda: execute(encoded))
    assert caught.value.errno == errno.EPERM


def test_ruleset_is_installed_atomically(namespace):
    rules = ruleset(GATE_PORT)
    broken = Rule(
        TABLE,
        "capture",
        "jump where nothing is",
        (Expression("immediate", (("dreg", 0), ("data", Verdict(-4, "nowhere")))),),
    )
    plan = network_plan()._replace(ruleset=Batch(NETLINK_NETFILTER, (*rules, broken)))
    encoded = encode(plan)

    def attempt():
        with pytest.raises(StepFailedError, match="rule of `capture`: jump where nothing is"):
            execute(encoded)
        return has_table()

    assert not namespace.as_owner(attempt)


def test_counters_work_without_nflog(namespace, encoded):
    """ENOENT on a log rule is what a kernel without NFLOG says; here its chain is what doesn't exist."""
    missing = tuple(s._replace(chain="gone") if isinstance(s, Rule) and s.logs else s for s in ruleset(GATE_PORT))
    plan = network_plan()._replace(ruleset=Batch(NETLINK_NETFILTER, missing))
    encoded = encode(plan)

    def make():
        installed = execute(encoded)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, open_counter_socket() as counters:
            sock.sendto(b"x", ("8.8.8.8", 443))
            return installed, read_counters(counters)

    installed, counters = namespace.as_owner(make)
    assert installed == Installed(ipv6=True, refusal_log=False)
    assert counters["quic"] == 1
    assert counters["logged"] == 0


def test_enoent_on_another_rule_is_an_error(namespace):
    missing = (*ruleset(GATE_PORT), Rule(TABLE, "gone", "in no chain", ()))
    plan = network_plan()._replace(ruleset=Batch(NETLINK_NETFILTER, missing))
    encoded = encode(plan)

    def attempt():
        with pytest.raises(StepFailedError, match="in no chain") as caught:
            execute(encoded)
        return caught.value.errno, has_table()

    assert namespace.as_owner(attempt) == (errno.ENOENT, False)


def disable_ipv6():
    Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("1")


def test_disabled_ipv6_leaves_ipv4_working(rootless, encoded):
    network = Network(encoded, rootless=rootless, before=disable_ipv6)
    try:
        assert network.installed == Installed(ipv6=False, refusal_log=True)

        def connect(family, address):
            with socket.socket(family) as sock:
                sock.connect((address, 443))
                return sock.getpeername()[:2]

        assert network.run(lambda: connect(socket.AF_INET, "93.184.216.34")) == ("93.184.216.34", 443)
        assert network.run(lambda: outcome(lambda: connect(socket.AF_INET6, "2606:4700::1"))) in (
            errno.ENETUNREACH,
            errno.EADDRNOTAVAIL,
        )
        accepted, _ = network.sockets.tcp.accept()
        with accepted:
            assert accepted.getsockname()[0] == "::ffff:93.184.216.34"
    finally:
        network.close()


def test_installation_leaves_nothing_behind(encoded, rootless):
    def count():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = count()
    for _ in range(3):
        network = Network(encoded, rootless=rootless)
        inode = network.run(lambda: os.stat("/proc/self/ns/net").st_ino)
        network.close()
    assert all(now <= then for now, then in zip(count(), before, strict=True))  # a thread of others may end meanwhile
    with_it = [pid for pid in os.listdir("/proc") if pid.isdecimal() and netns(pid) == inode]
    assert with_it == []


def netns(pid):
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def test_table_has_one_input_and_one_output_chain():
    chains = [s for s in ruleset(GATE_PORT) if isinstance(s, Chain)]
    based = [(chain.name, chain.is_outgoing) for chain in chains if chain.priority is not None]
    assert based == [("capture", False), ("sending", True)]
