"""What has to be there and looked at for a policy to be carried out: read off its rules, and never a verdict."""

from typing import TYPE_CHECKING, Final

from rules.attempt import Protocol
from rules.ports import Ports
from rules.verdicts import Mode, Scan, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from rules.addresses import Address
    from rules.matching.index import Index
    from rules.matching.layers import Layer
    from rules.names import HostName
    from rules.rule import Rule
    from rules.sandbox import Command
    from rules.secrets import Secret
    from rules.settings import Settings

_SPOKEN: Final = (Protocol.TLS, Protocol.HTTP, Protocol.TCP)
_USUAL: Final = {443: Protocol.TLS, 80: Protocol.HTTP}


class Needs:
    """The part of a policy that says so."""

    rules: "tuple[Rule, ...]"
    settings: "Settings"
    secrets: "tuple[Secret, ...]"
    commands: "tuple[Command, ...]"
    layers: "tuple[Layer, ...]"
    _index: "Index"

    @property
    def needs_inspection(self) -> bool:
        """Whether anything this policy lets out is read on its way; if not, the gate needs no inspection at all."""
        if self.secrets or self.settings.mode is Mode.AUDIT:
            return True
        if any(rule.looks_at_requests or rule.mode is Mode.AUDIT for rule in self.rules):
            return True
        answered = [rule for rule in self.rules if rule.action is not Verdict.DENY]
        if any(rule.ports is None for rule in answered):
            return True  # an ask about every port and protocol
        spoken = [(rule, ports) for rule in answered for ports in rule.ports or ()]
        return any(
            ports.protocol is Protocol.HTTP or (ports.protocol is Protocol.TLS and not rule.splices(ports.low))
            for rule, ports in spoken
        )

    @property
    def scans_strictly(self) -> bool:
        """Whether any rule says `scan: strict`."""
        every = (*self.rules, *(rule for layer in self.layers for rule in layer.rules))
        return any(rule.scan is Scan.STRICT for rule in every)

    def names_host(self, target: "HostName | Address") -> bool:
        """Whether a secret belongs to a host, or a rule that may let out names it: more closely than `*` or `*.com`."""
        if any(target == host for secret in self.secrets for host, _ in secret.hosts):
            return True
        answered = [rule for rule in self.rules if rule.action is not Verdict.DENY]
        if isinstance(target, str):
            return any(
                (name.below is None or "." in name.below) and name.matches(target)
                for rule in answered
                for name in rule.names
            )
        return any(network.prefixlen and target in network for rule in answered for network in rule.networks)

    @property
    def endings(self) -> "tuple[date, ...]":
        """The last day of each rule that has one."""
        return tuple(rule.until for rule in self.rules if rule.until is not None)

    @property
    def needs_approvals(self) -> bool:
        """Whether anybody could be asked under this policy, or it matters what a task has read."""
        actions = {*(rule.action for rule in self.rules), *(command.action for command in self.commands)}
        return self.minds_taint or Verdict.ASK in actions

    @property
    def minds_taint(self) -> bool:
        """Whether it matters to any rule what a task has read."""
        return any(rule.minds_taint for rule in self.rules)

    @property
    def lets_udp_out(self) -> bool:
        """Whether any UDP could leave, or somebody be asked for it; if not, the gate need not listen for it at all."""
        asking = (rule for rule in self.rules if rule.action is not Verdict.DENY)
        return any(ports.protocol is Protocol.UDP for rule in asking for ports in rule.ports or ())

    def protocols(self, target: "HostName | Address", port: int) -> frozenset[Protocol]:
        """List what rules that let out or ask say is spoken at `target` on `port`.

        In audit mode anything over TCP may be. An ask about every port expects on each what is usual there.
        """
        found = frozenset[Protocol]()
        for candidate in self._index.candidates(target).rules:
            rule = candidate.rule
            if rule.action is Verdict.ASK and rule.ports is None:
                usual = _USUAL.get(port)
                found = found.union(_SPOKEN if usual is None else (usual,))
            elif rule.action is not Verdict.DENY or (rule.default and (rule.mode or self.settings.mode) is Mode.AUDIT):
                here = [Ports(port, port, p) for p in _SPOKEN] if rule.ports is None else rule.ports
                found = found.union(ports.protocol for ports in here if ports.low <= port <= ports.high)
        return found.union(_SPOKEN) if self.settings.mode is Mode.AUDIT else found

    def needs_request(self, target: "HostName | Address", port: int) -> bool:
        """Whether a rule that can match `target` on `port` looks at requests."""
        return any(rule.looks_at_requests for rule in self._on_port(target, port))

    def needs_headers(self, target: "HostName | Address", port: int) -> bool:
        """Whether a rule that can match `target` on `port` looks at the headers of requests: `Request.headers`."""
        return any(rule.looks_at_headers for rule in self._on_port(target, port))

    def may_ask(self, target: "HostName | Address", port: int) -> bool:
        """Whether a rule that can match `target` on `port` asks people."""
        return any(rule.action is Verdict.ASK for rule in self._on_port(target, port))

    def needs_git(self, target: "HostName | Address", port: int) -> bool:
        """Whether a rule that can match `target` on `port` looks at git: `Request.git` has to be read then."""
        return any(rule.looks_at_git for rule in self._on_port(target, port))

    def _on_port(self, target: "HostName | Address", port: int) -> "Iterator[Rule]":
        """List the rules that can match `target` on `port`, whatever is spoken there."""
        for candidate in self._index.candidates(target).rules:
            ports = candidate.rule.ports
            if ports is None or any(p.low <= port <= p.high for p in ports):
                yield candidate.rule
