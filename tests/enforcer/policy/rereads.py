"""One run's rule files and what looks after them, without a task: what its worker would be told."""

import os
import selectors
import time

from enforcer.policy import reload, rule_files
from enforcer.policy.run_request import RunRequest
from proxy.dialing import proxy_auth
from proxy.worker import policy_transfer
from rules.loading.cases import parse_attempt
from tests.rules.rule_texts import told

OWN = "version: 1\nname: web\nrules:\n  - {id: all, to: '**.example', action: allow}\n"
WAIT = 30  # seconds for what must happen


class Gate:
    """What a worker was told, and the policies that it was handed."""

    def __init__(self):
        self.told, self.policies = [], []

    def send(self, what, descriptors=()):
        self.told.append(what)
        for descriptor in descriptors:
            with policy_transfer.DescriptorReader(os.dup(descriptor)) as file:
                proxy_auth.take(file)
                self.policies.append(policy_transfer.receive(file))


class Run:
    """One run's rule files, and what looks after them."""

    def __init__(self, base, root=None):
        self.own, self.root = base / "web.yaml", base / "etc" / "rules.d" / "root.yaml"
        (base / "workspace").mkdir()
        self.own.write_text(OWN)
        if root is not None:
            self.root.parent.mkdir(parents=True)
            self.root.write_text(root)
        self.gate, self.selector = Gate(), selectors.DefaultSelector()
        loaded = rule_files.load([self.own], base / "etc")
        asked = rule_files.make_absolute(loaded.searched_paths)
        self.wanted = RunRequest(
            ("true",), "web", loaded.policy, (str(self.own),), str(base / "workspace"), system=base / "etc",
            searched_paths=asked, fingerprint=rule_files.fingerprint(asked, base / "etc"),
        )  # fmt: skip
        self.reloader = reload.Reloader(self.wanted, self.gate, lambda _paths: None, self.selector)

    def close(self):
        self.reloader.close()
        assert not self.selector.get_map()
        self.selector.close()

    def turns(self, until, seconds=WAIT, turn=None):
        """Do what is due until something holds, or for so long."""
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            for key, _ in self.selector.select(min(0.2, self.reloader.wait())):
                key.data()
            (turn or self.reloader.turn)()

    def reread(self):
        """Read the files again; give what the gate was told."""
        before = len(self.gate.told)
        self.reloader.now()
        self.turns(lambda: len(self.gate.told) > before)
        return self.gate.told[before:]

    @property
    def rejected(self):
        return "rules_rejected" in self.gate.told[-1]

    def decided(self, attempt):
        policy = self.gate.policies[-1] if self.gate.policies else self.wanted.policy
        return told(parse_attempt(attempt).decide(policy))
