"""Encodes a network plan as netlink messages with pyroute2 (140 ms to import); `install` caches the bytes.

Every message asks for an acknowledgement, so that no step fails unnoticed. Sequence numbers are zero.
"""

import socket
from functools import singledispatch
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, nla, nlmsg
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink import nftsocket as nft
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.nftables.expressions import genex

from enforcer.network import install
from enforcer.network.install import EncodedNetwork
from enforcer.network.plan import AddAddress, Batch, BringUpLoopback, NetworkPlan, RouteToLoopback
from enforcer.network.ruleset import AddressSet, Chain, Counter, Expression, Rule, Table, Verdict
from proxy.wire.netlink import NETLINK_NETFILTER

_NEW = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
_LO = 1  # the index of `lo` in every namespace
_IFF_UP, _IFA_F_NODAD = 1, 0x02  # without NODAD the address is tentative and the route below it fails now and then
_TABLE_LOCAL, _TYPE_LOCAL, _SCOPE_HOST, _PROTO_STATIC = 255, 2, 254, 4
_INET = 1  # NFPROTO_INET
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWOBJ = 0, 3, 6, 9, 18
_PREROUTING, _OUTPUT, _NF_DROP, _OBJECT_COUNTER = 0, 3, 0, 1
_IPV6_ADDRESS, _IPV6_BYTES = 8, 16  # TYPE_IP6ADDR of nft(8), which alone reads it


class _rule_msg(nft.nft_rule_msg):  # type: ignore[misc]  # noqa: N801  # pyroute2's way of naming, and untyped
    """pyroute2's rule, with the widths that the kernel reads in a log expression (nft_log.c: both are 16 bits)."""

    class nft_expr(nft.nft_contains_expr.nft_expr):  # type: ignore[misc]  # noqa: N801
        class nft_log(nla):  # type: ignore[misc]  # noqa: N801
            nla_map = (
                ("NFTA_LOG_UNSPEC", "none"),
                ("NFTA_LOG_GROUP", "be16"),
                ("NFTA_LOG_PREFIX", "asciiz"),
                ("NFTA_LOG_SNAPLEN", "be32"),
                ("NFTA_LOG_QTHRESHOLD", "be16"),
            )


class _object_msg(nfgen_msg):  # type: ignore[misc]  # noqa: N801
    """A stateful object (nf_tables.h, nft_object_attributes), which pyroute2 doesn't have."""

    prefix = "NFTA_OBJ_"
    nla_map = (
        ("NFTA_OBJ_UNSPEC", "none"),
        ("NFTA_OBJ_TABLE", "asciiz"),
        ("NFTA_OBJ_NAME", "asciiz"),
        ("NFTA_OBJ_TYPE", "be32"),
        ("NFTA_OBJ_DATA", "counter"),
    )

    class counter(nla):  # type: ignore[misc]  # noqa: N801
        nla_map = (("NFTA_COUNTER_UNSPEC", "none"), ("NFTA_COUNTER_BYTES", "be64"), ("NFTA_COUNTER_PACKETS", "be64"))


def encode(plan: NetworkPlan) -> EncodedNetwork:
    """Return every batch of the plan as bytes."""
    return EncodedNetwork(plan.gate_port, *map(_batch, plan.batches))


def _batch(batch: Batch) -> install.Batch:
    """Return a batch's messages; a ruleset's are between a begin and an end message, which make it atomic."""
    encoded = [_bytes(_message(statement)) for statement in batch.statements]
    if batch.protocol == NETLINK_NETFILTER:
        encoded = [_batch_edge(_BATCH_BEGIN), *encoded, _batch_edge(_BATCH_END)]
    logging = tuple(
        index for index, statement in enumerate(batch.statements) if isinstance(statement, Rule) and statement.logs
    )
    return install.make_batch(encoded, batch.describe(), logging)


def _batch_edge(kind: int) -> bytes:
    edge = nfgen_msg()
    edge["res_id"], edge["header"]["type"], edge["header"]["flags"] = NFNL_SUBSYS_NFTABLES, kind, NLM_F_REQUEST
    return _bytes(edge)


def _bytes(message: nlmsg) -> bytes:
    message.encode()
    return bytes(message.data)


@singledispatch
def _message(statement: object) -> nlmsg:
    raise TypeError(f"no netlink message is known for {statement!r}")


@_message.register
def _(_: BringUpLoopback) -> nlmsg:
    link = ifinfmsg()
    link["header"]["type"], link["header"]["flags"] = RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK
    link["index"], link["flags"], link["change"] = _LO, _IFF_UP, _IFF_UP
    return link


@_message.register
def _(statement: AddAddress) -> nlmsg:
    sandbox_address = statement.address
    address = ifaddrmsg()
    address["header"]["type"], address["header"]["flags"] = RTM_NEWADDR, _NEW | NLM_F_EXCL
    address["family"], address["prefixlen"], address["index"] = (
        _family(sandbox_address),
        sandbox_address.max_prefixlen,
        _LO,
    )
    address["flags"] = _IFA_F_NODAD if sandbox_address.version == 6 else 0
    address["attrs"] = [("IFA_ADDRESS", str(sandbox_address)), ("IFA_LOCAL", str(sandbox_address))]
    return address


@_message.register
def _(statement: RouteToLoopback) -> nlmsg:
    route = rtmsg()
    route["header"]["type"], route["header"]["flags"] = RTM_NEWROUTE, _NEW | NLM_F_EXCL
    route["family"], route["dst_len"], route["table"] = _family(statement.source), 0, _TABLE_LOCAL
    route["type"], route["proto"] = _TYPE_LOCAL, _PROTO_STATIC
    route["scope"] = _SCOPE_HOST
    route["attrs"] = [("RTA_TABLE", _TABLE_LOCAL), ("RTA_OIF", _LO), ("RTA_PREFSRC", str(statement.source))]
    return route


@_message.register
def _(statement: Table) -> nlmsg:
    return _nft(nft.nft_table_msg(), _NEWTABLE, [("NFTA_TABLE_NAME", statement.name)])


@_message.register
def _(statement: Counter) -> nlmsg:
    attributes = [
        ("NFTA_OBJ_TABLE", statement.table),
        ("NFTA_OBJ_NAME", str(statement.name)),
        ("NFTA_OBJ_TYPE", _OBJECT_COUNTER),
        ("NFTA_OBJ_DATA", {"attrs": []}),
    ]
    return _nft(_object_msg(), _NEWOBJ, attributes)


@_message.register
def _(statement: AddressSet) -> nlmsg:
    attributes = [
        ("NFTA_SET_TABLE", statement.table),
        ("NFTA_SET_NAME", statement.name),
        ("NFTA_SET_ID", 1),  # within its batch
        ("NFTA_SET_FLAGS", ("NFT_SET_TIMEOUT", "NFT_SET_EVAL")),
        ("NFTA_SET_KEY_TYPE", _IPV6_ADDRESS),
        ("NFTA_SET_KEY_LEN", _IPV6_BYTES),
        ("NFTA_SET_DESC", {"attrs": [("NFTA_SET_DESC_SIZE", statement.size)]}),
        ("NFTA_SET_TIMEOUT", statement.timeout * 1000),
    ]
    return _nft(nft.nft_set_msg(), _NEWSET, attributes)


@_message.register
def _(statement: Chain) -> nlmsg:
    attributes: list[tuple[str, Any]] = [("NFTA_CHAIN_TABLE", statement.table), ("NFTA_CHAIN_NAME", statement.name)]
    if statement.priority is not None:
        hook = [
            ("NFTA_HOOK_HOOKNUM", _OUTPUT if statement.is_outgoing else _PREROUTING),
            ("NFTA_HOOK_PRIORITY", statement.priority),
        ]
        attributes += [
            ("NFTA_CHAIN_TYPE", "filter"),
            ("NFTA_CHAIN_POLICY", _NF_DROP),
            ("NFTA_CHAIN_HOOK", {"attrs": hook}),
        ]
    return _nft(nft.nft_chain_msg(), _NEWCHAIN, attributes)


@_message.register
def _(statement: Rule) -> nlmsg:
    attributes = [
        ("NFTA_RULE_TABLE", statement.table),
        ("NFTA_RULE_CHAIN", statement.chain),
        ("NFTA_RULE_EXPRESSIONS", [_expression(expression) for expression in statement.expressions]),
    ]
    return _nft(_rule_msg(), _NEWRULE, attributes, NLM_F_APPEND)


def _nft(message: nlmsg, kind: int, attributes: list[tuple[str, Any]], flags: int = NLM_F_EXCL) -> nlmsg:
    message["nfgen_family"], message["attrs"] = _INET, attributes
    message["header"]["type"], message["header"]["flags"] = NFNL_SUBSYS_NFTABLES << 8 | kind, _NEW | flags
    return message


def _expression(expression: Expression) -> Any:
    return genex(expression.name, {name: _value(value) for name, value in expression.attributes})


def _value(value: int | str | bytes | Verdict) -> Any:
    if isinstance(value, bytes):
        return {"attrs": [("NFTA_DATA_VALUE", value)]}
    if isinstance(value, Verdict):
        chain = [("NFTA_VERDICT_CHAIN", value.chain)] if value.chain else []
        return {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", value.code), *chain]})]}
    return str(value) if isinstance(value, str) else value


def _family(address: Any) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
