"""A policy is taken over beside everything else, and also where nothing can be done beside anything else."""

import asyncio
import os
import socket
import threading
from contextvars import copy_context
from types import SimpleNamespace

import pytest

from proxy.dialing import proxy_auth
from proxy.event_loop.poller import Loop
from proxy.event_loop.turn import run_at_once
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.worker import policy_transfer, server
from proxy.worker.messages import Setup
from proxy.worker.policy_swap import PolicyReload, read_policy
from proxy.worker.server import SandboxServers, _RuleSet
from rules.loading.layers import put_over
from rules.matching.policy import Policy
from tests.proxy.gate.gate_lab import RAW, SPLICED, policy_of


class Everybody:
    """All that hears of another policy."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.said = []
        self.dialer = SimpleNamespace(login=None)

    def __getattr__(self, name):
        return lambda *words, **_: self.said.append((name, *words))


def file_of(policy, login=None):
    descriptor = os.memfd_create("policy")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        proxy_auth.send(login, file)
        policy_transfer.send(policy, file)
    return descriptor


def taken(journal, before, *descriptors):
    """Have a worker take policies over; returns the sandbox and what was told."""
    everybody = Everybody(SimpleNamespace(policy=before, meters=SimpleNamespace(keep=lambda _: None)))
    swap = PolicyReload(everybody, everybody, everybody, everybody, everybody).swap
    sandbox = SimpleNamespace(recorder=everybody, swap=swap, context=copy_context())

    async def take():
        servers._rule_sets[1] = _RuleSet(before, servers={"box": sandbox})
        for descriptor in descriptors:
            servers._receive_policy(1, {}, [descriptor])
        while servers._policy_reader is not None:
            await servers._policy_reader

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, asyncio.Runner(loop_factory=Loop) as runner:
        servers = SandboxServers(Setup(ours, 0.0, b"", os.open(journal, os.O_RDONLY), theirs))
        runner.run(take())
    return everybody.sandbox, everybody.said


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "no threads"])
def test_newest_policy_is_in_force(tmp_path, monkeypatch, threads):
    """A task of the same user that starts processes without end leaves the gate no thread."""

    def none_left(_):
        raise RuntimeError("can't start new thread")

    rules = [rule.replace("ORIGIN", "5432") for rule in (RAW, SPLICED)]
    before, middle, after = (policy_of(tmp_path, some) for some in (rules[:1], rules, rules[1:]))
    if not threads:
        monkeypatch.setattr(threading.Thread, "start", none_left)
    sandbox, said = taken(tmp_path, before, file_of(middle), file_of(after))
    assert sandbox.policy.revision == after.revision
    assert [words[0] for words in said if words[0] in {"error", "rules_rejected", "rules_loaded"}] == ["rules_loaded"]


def test_policy_is_loaded_though_the_earlier_one_cannot_be_freed(tmp_path, monkeypatch):
    async def stuck(_):
        raise ValueError("this can't be taken apart")

    monkeypatch.setattr(server, "release_policies", stuck)
    rules = [rule.replace("ORIGIN", "5432") for rule in (RAW, SPLICED)]
    before, middle, after = (policy_of(tmp_path, some) for some in (rules[:1], rules, rules[1:]))
    put, came = SandboxServers._put_in_force, []

    async def put_in_force(self, *given):
        if not came:
            came.append(self._receive_policy(1, {}, [file_of(after)]))  # a newer one comes meanwhile
        await put(self, *given)

    monkeypatch.setattr(SandboxServers, "_put_in_force", put_in_force)
    sandbox, said = taken(tmp_path, before, file_of(middle))
    assert sandbox.policy.revision == after.revision
    assert [words[0] for words in said if words[0] in {"error", "rules_loaded"}] == ["rules_loaded", "error"] * 2


def test_policy_with_unreadable_files_is_recorded_as_rejected_in_part(tmp_path):
    before = policy_of(tmp_path, [RAW.replace("ORIGIN", "5432")])
    sandbox, said = taken(tmp_path, before, file_of(put_over(before, Policy([]), ["broken"])))
    assert sandbox.policy.unread == ("broken",)
    assert [words for words in said if words[0].startswith("rules_")] == [
        ("rules_loaded", before.revision),
        ("rules_rejected", ("broken",)),
    ]


def test_new_policy_reviews_everything_that_is_open(tmp_path):
    """Connections and flows, what was looked up, what was counted, and who we are to the upstream proxy."""
    before, after = (policy_of(tmp_path, [rule.replace("ORIGIN", "5432")]) for rule in (RAW, SPLICED))
    heard = []

    class Part:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, word):
            return lambda *_: heard.append((self.name, word, sandbox.policy.revision == after.revision))

    async def test():
        dialer = SimpleNamespace(login=None)
        recorder, gate = Part("recorder"), Part("gate")
        recorder.sandbox, gate.dialer = sandbox, dialer
        reloading = PolicyReload(recorder, gate, Part("udp"), Part("lookup"), Part("inspection"))
        reloading.swap(*await read_policy(file_of(after, proxy_auth.Login(b"me", b"geheimnis"))))
        assert dialer.login == proxy_auth.Login(b"me", b"geheimnis")

    sandbox = SandboxState("box", Task("1", "t"), before)
    sandbox.meters = Part("meters")
    asyncio.run(test())
    run_at_once((watch := sandbox.own_secrets.watch()).search(b"geheimnis"))
    assert watch.found() == ["the password for the upstream proxy"]
    assert heard[:5] == [
        ("meters", "keep", True),
        ("recorder", "rules_loaded", True),
        ("lookup", "forget_checks", True),
        ("gate", "review", True),
        ("udp", "review", True),
    ]


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "no threads"])
def test_malformed_policy_changes_nothing(tmp_path, monkeypatch, threads):
    before = policy_of(tmp_path, [RAW.replace("ORIGIN", "5432")])
    descriptor = os.memfd_create("policy")
    os.write(descriptor, b"cos\nsystem\n(S'true'\ntR.")
    if not threads:
        monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("none left")))
    sandbox, said = taken(tmp_path, before, descriptor)
    assert sandbox.policy is before
    assert [words[0] for words in said] == ["error", "rules_rejected"]
