"""A policy handed over is the same policy: nothing more comes along, and nothing else can."""

import gc
import io
import os
import pickle
import weakref
from pathlib import Path

import pytest

from proxy.worker import policy_transfer
from rules.loading.cases import parse_attempt
from rules.loading.load import load, read

RULES = """
version: 1
name: all
settings: {mode: audit}
rules:
  - {id: names, to: ["*.example", "**.a.test", "x*.b.test"], ports: [443, 80, 22/tcp], action: allow}
  - {id: inside, to: i.test, resolves_to: [10.0.0.0/8, "fd00::/8"], action: flag, idle_timeout: 5m}
  - {id: addresses, to: [1.1.1.0/24, "2606:4700::/32"], ports: [443, 1-9/tcp], action: allow}
  - {id: requests, to: r.test, http: {methods: [GET], paths: ["/a/*/b", "/c/**"]}, except: [{http: {paths: [/c/no]}}], action: allow}
  - {id: listed, to: {list: names.txt}, action: deny}
  - {id: rest, to: "*", default: true, action: ask, why: "ask for it"}
"""
ATTEMPTS = [
    "tls www.example:443", "tcp www.example:22", "tls a.test:443", "tls xy.b.test:443", "tls yx.b.test:443", "tls i.test:443",
    "tls 1.1.1.1:443", "tcp 1.1.2.1:5", "GET https://r.test/a/1/b", "GET https://r.test/c/no", "PUT https://r.test/c/d",
    "tls bad.test:443", "tls sub.bad.test:443", "tls other.test:443", "udp other.test:443",
]  # fmt: skip


@pytest.fixture
def policy(tmp_path):
    (tmp_path / "names.txt").write_text("bad.test\nworse.test\n")
    (tmp_path / "all.yaml").write_text(RULES)
    return load([tmp_path / "all.yaml"])


def handed(policy):
    file = io.BytesIO()
    policy_transfer.send(policy, file)
    file.seek(0)
    return policy_transfer.receive(file)


def decisions(policy):
    return [parse_attempt(text).decide(policy) for text in ATTEMPTS]


def test_two_processes_can_read_one_descriptor(policy):
    """As two workers do, to which the service has passed one descriptor: they share its offset (open(2))."""
    ours = os.memfd_create("policy")
    with os.fdopen(os.dup(ours), "wb") as file:
        policy_transfer.send(policy, file)
    with policy_transfer.DescriptorReader(os.dup(ours)) as one, policy_transfer.DescriptorReader(ours) as other:
        first = one.read(100)
        assert policy_transfer.receive(other).revision == policy.revision
        assert policy_transfer.receive(io.BytesIO(first + one.read())).revision == policy.revision


def test_transferred_policy_decides_the_same(policy):
    other = handed(policy)
    assert decisions(other) == decisions(policy)
    assert (other.revision, other.rule_ids, other.settings, other.sources) == (
        policy.revision, policy.rule_ids, policy.settings, policy.sources,
    )  # fmt: skip
    assert decisions(handed(other)) == decisions(policy)


def test_cached_decisions_are_not_transferred(policy):
    """Some of it is filed by where objects lie, which is elsewhere in another process."""

    def size():
        file = io.BytesIO()
        policy_transfer.send(policy, file)
        return len(file.getvalue())

    before = size()
    decisions(policy)
    assert size() == before


def test_policy_with_layers_is_transferred_whole(tmp_path):
    (tmp_path / "top.yaml").write_text(
        "version: 1\nname: top\nlayer: ceiling\nrules: [{id: a, to: '*.example', ports: [443, 22/tcp], action: allow}]\n"
    )
    (tmp_path / "all.yaml").write_text(RULES.replace("rules:", "include: [{file: top.yaml}]\nrules:", 1))
    (tmp_path / "names.txt").write_text("bad.test\n")
    policy = read([tmp_path / "all.yaml"]).policy
    before = decisions(policy)
    other = handed(policy)
    assert decisions(other) == before
    assert "layer" in {decision.reason for decision in before}


def test_many_rules_are_transferred_in_pieces(tmp_path):
    lines = "".join(
        f"  - {{id: r{n}, to: h{n}.example, action: allow}}\n" for n in range(3 * policy_transfer._RULES_PER_PIECE + 7)
    )
    (tmp_path / "many.yaml").write_text(f"version: 1\nname: many\nrules:\n{lines}")
    policy = load([tmp_path / "many.yaml"])
    other = handed(policy)
    assert other.rule_ids == policy.rule_ids
    assert parse_attempt("tls h700.example:443").decide(other).rules == ("many:r700",)
    # rules are those that the index leads to, and no copies
    assert {id(rule) for rule in other.rules} >= {
        id(c.rule) for c in other._index.candidates(_name("h700.example")).rules
    }


def _name(text):
    from rules.values.names import HostName

    return HostName.parse(text)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/made-by-a-pickle"),)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", pickle.dumps(0, 3), pickle.dumps(0, 3) + pickle.dumps([1], 3), pickle.dumps(Evil(), 3),
     pickle.dumps(1, 3) + pickle.dumps((eval,), 3), b"cos\nsystem\n(S'touch /tmp/made-by-a-pickle'\ntR."],
    ids=range(7),
)  # fmt: skip
def test_malformed_transfer_is_refused(data):
    with pytest.raises(ValueError, match="the data is not a policy"):
        policy_transfer.receive(io.BytesIO(data))
    assert not Path("/tmp/made-by-a-pickle").exists()


def test_released_policy_is_freed(policy):
    decisions(policy)
    other = handed(policy)
    expected = decisions(other)
    kept = other.rules[0]
    gone = weakref.ref(other)
    held = [other]
    del other
    gc.collect()
    policy_transfer.free(held)
    assert held == []
    assert gone() is None
    assert kept.id.startswith("all:")
    assert decisions(handed(policy)) == expected
