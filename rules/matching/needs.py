"""What a policy needs to be carried out (inspection, approvals, UDP and others), derived from its rules."""

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING

from rules.attempt import Protocol
from rules.verdicts import Mode, Scan, Verdict

if TYPE_CHECKING:
    from rules.matching.layers import Layer
    from rules.rule import Rule
    from rules.sandbox import Command
    from rules.secrets import Secret
    from rules.settings import Settings
    from rules.values.addresses import Address
    from rules.values.names import HostName


@dataclass(frozen=True)
class Needs:
    """What the rules need from the gate. Each value is computed once, on first use."""

    rules: "tuple[Rule, ...]"
    settings: "Settings"
    secrets: "tuple[Secret, ...]"
    commands: "tuple[Command, ...]"
    layers: "tuple[Layer, ...]"

    @cached_property
    def inspection(self) -> bool:
        """Whether any allowed connection is inspected; if not, the gate starts no inspection."""
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

    @cached_property
    def strict_scan(self) -> bool:
        """Whether any rule says `scan: strict`."""
        every = (*self.rules, *(rule for layer in self.layers for rule in layer.rules))
        return any(rule.scan is Scan.STRICT for rule in every)

    def names_host(self, target: "HostName | Address") -> bool:
        """Whether a secret belongs to a host, or a rule that may allow names it more closely than `*` or `*.com`."""
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

    @cached_property
    def endings(self) -> tuple[date, ...]:
        """The last day of each rule that has one."""
        return tuple(rule.until for rule in self.rules if rule.until is not None)

    @cached_property
    def approvals(self) -> bool:
        """Whether any rule or command can require an approval, or depends on taint."""
        actions = {*(rule.action for rule in self.rules), *(command.action for command in self.commands)}
        return self.taint or Verdict.ASK in actions

    @cached_property
    def taint(self) -> bool:
        """Whether any rule depends on what a task has read."""
        return any(rule.depends_on_taint for rule in self.rules)

    @cached_property
    def udp(self) -> bool:
        """Whether any UDP could be allowed, now or after an approval; if not, the gate listens for none."""
        asking = (rule for rule in self.rules if rule.action is not Verdict.DENY)
        return any(ports.protocol is Protocol.UDP for rule in asking for ports in rule.ports or ())
