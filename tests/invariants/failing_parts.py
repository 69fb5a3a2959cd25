"""`exeat` with parts of its worker that raise on command: `python failing_parts.py run ...`.

A lookup of arm-N.mark.example makes part N raise from then on; arm-none makes all parts work again. So production code
needs no hook for tests, and one run tries every part.
"""

import importlib
import re
import sys
from functools import wraps

# Part: the kinds of traffic that pass it: spliced and inspected TLS, plain HTTP (clear), raw TCP.
PARTS = {
    "proxy.gate.listener:is_unroutable": "spliced inspected clear raw",
    "proxy.gate.listener:ConnectionRecord": "spliced inspected clear raw",
    "proxy.gate.listener:Gate._original_destination": "spliced inspected clear raw",
    "proxy.gate.decide:DecisionCache.peek_wait": "spliced inspected clear raw",
    "proxy.gate.connection:recognise": "spliced inspected clear",
    "proxy.gate.decide:DecisionCache.decide": "spliced inspected clear raw",
    "proxy.gate.connection:Connection._decide": "spliced inspected clear raw",
    "proxy.gate.managed_connection:ManagedConnection._apply_decision": "spliced inspected clear raw",
    "proxy.gate.connection:Connection._record_and_reset_or_inspect": "inspected clear",
    "proxy.gate.record:ConnectionRecord.record_decision": "spliced inspected clear raw",
    "proxy.gate.managed_connection:ManagedConnection._resolve": "spliced raw",
    "proxy.gate.connection:Connection._dial": "spliced raw",
    "proxy.gate.connection:Splice": "spliced raw",
    "proxy.gate.managed_connection:ManagedConnection._enter": "spliced inspected clear raw",
    "proxy.gate.splice:Splice.start": "spliced raw",
    "rules.matching.policy:Policy.decide": "spliced inspected clear raw",
    "rules.matching.policy:Policy.protocols": "spliced inspected clear raw",
    "rules.matching.policy:Policy.check_address": "spliced inspected clear raw",
    "proxy.dialing.dialer:Dialer.known": "spliced inspected clear raw",
    "proxy.dialing.dialer:Dialer._dialable_addresses": "spliced inspected clear raw",
    "proxy.dialing.dialer:Dialer.connect": "spliced inspected clear raw",
    "proxy.dns.lookup:Lookup.known": "spliced inspected clear raw",
    "proxy.dns.lookup:Lookup._store": "spliced inspected clear raw",
    "proxy.dns.lookup:in_order": "spliced inspected clear raw",
    "proxy.sandbox.recorder:Recorder.decided": "spliced inspected clear raw",
    "proxy.sandbox.recorder:encode": "spliced inspected clear raw",
    "proxy.telemetry.journal.writer:Journal.append": "spliced inspected clear raw",
    "proxy.inspection.pipeline:Pipeline.decide": "inspected clear",
    "proxy.inspection.pipeline:Pipeline._record_and_prepare": "inspected clear",
    "proxy.inspection.pipeline:head_to_send": "inspected clear",
    "proxy.inspection.session:Session.evaluate": "inspected clear",
    "proxy.inspection.session:Session.record_decision": "inspected clear",
    "proxy.inspection.decide_request:request_head.read": "inspected clear",
    "proxy.inspection.connection:InspectedConnection.start": "inspected clear",
    "proxy.inspection.connection:InspectedConnection.received": "inspected clear",
    "proxy.inspection.connection:InspectedConnection._do": "inspected clear",
    "proxy.inspection.connection:InspectedConnection.decide": "inspected clear",
}
_ARM = re.compile(rb"arm-([0-9]+|none)")
_armed = ""


class InjectedError(Exception):
    """Raised by an armed part."""


def raise_when_armed(function, part):
    @wraps(function, updated=())
    def raising(*arguments, **named):
        if part == _armed:
            raise InjectedError(part)
        return function(*arguments, **named)

    return raising


def arm_by_lookup(function):
    @wraps(function)
    def ask(self, data, *rest):
        global _armed  # noqa: PLW0603
        found = _ARM.search(data)
        if found:
            _armed = "" if found[1] == b"none" else list(PARTS)[int(found[1])]
            # The arming lookup itself must be answered, and it passes some of the parts.
            part, _armed = _armed, ""
            try:
                return function(self, data, *rest)
            finally:
                _armed = part
        return function(self, data, *rest)

    return ask


def install():
    for part in PARTS:
        module, _, path = part.partition(":")
        holder = importlib.import_module(module)
        *way, last = path.split(".")
        for name in way:
            holder = getattr(holder, name)
        setattr(holder, last, raise_when_armed(getattr(holder, last), part))
    from proxy.dns.server import DnsServer

    DnsServer.ask = arm_by_lookup(DnsServer.ask)


if __name__ == "__main__":
    from enforcer.cli import main

    install()
    sys.exit(main())
