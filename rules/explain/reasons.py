"""Describes each reason and its remedy in a sentence each; docs/reference/rules.md has the long form."""

from typing import Final

from rules.addresses import Address, Opening, block_of, normal
from rules.names import HOST, ZONE, HostName, is_own
from rules.verdicts import Reason

MEANING: Final[dict[Reason, str]] = {
    Reason.GATE_ERROR: "something went wrong in the gate, so it stayed closed: see the journal's `gate.error` events",
    Reason.RULE: "a rule says so",
    Reason.NO_RULE: "no rule lets it out: add one if it should be",
    Reason.NO_COMMAND: "no command is about it, and what none is about may run",
    Reason.DEFAULT_RULE: "no other rule matches, and a rule with `default: true` says so",
    Reason.LAYER: "a file with `layer:` says so",
    Reason.EXPIRED: "the rule's `until` has passed",
    Reason.TAINTED: "the task has read what nobody vouches for, and the rule holds back such tasks",
    Reason.INVALID_NAME: "that is no host name, and what can't be read can't be allowed",
    Reason.NAME_MISMATCH: "the names given in DNS, TLS and HTTP differ: fronting, or a client that mixes up its hosts",
    Reason.SNI_MISSING: "the TLS client doesn't say which name it wants: allow the address itself, if that is meant",
    Reason.ECH: "the TLS client hides the name it wants: turn off encrypted client hello in it",
    Reason.PROTOCOL_MISMATCH: "the rules let out something else on this port: list `/tcp`, or say `tls: splice`",
    Reason.NON_PUBLIC_ADDRESS: "the address is not public: list it in `resolves_to`, or in `to`, if it is meant",
    Reason.ADDRESS_NOT_LISTED: "no rule that lets this out lists the address: see `resolves_to` and `to`",
    Reason.UNRESOLVED: "the name could not be resolved: see the host's resolver",
    Reason.AMBIGUOUS_PATH: "servers read this path differently: `..`, a backslash, control characters, broken escapes",
    Reason.AMBIGUOUS_REQUEST: "servers read this request differently: two hosts, two lengths, a method override",
    Reason.URL_TOO_LONG: "the URL is longer than the rule's `max_url`",
    Reason.BODY_NOT_ALLOWED: "the rule lets no body out with this method",
    Reason.TLS_CLIENT_DISTRUST: "the client doesn't trust the sandbox CA: give it that, or `tls: splice` for the host",
    Reason.UPSTREAM_UNTRUSTED: "the server's certificate doesn't hold for its name in this host's trust store",
    Reason.UPSTREAM_FAILED: "the server could not be reached, or broke off",
    Reason.CLIENT_CERTIFICATE: "the server wants a client certificate, and no secret (`in: client_certificate`) is one",
    Reason.LIMIT_EXCEEDED: "a limit of the rules or of the gate is used up",
    Reason.SECRET_MISUSE: "a placeholder of a secret was sent where the secret doesn't belong",
    Reason.SECRET_NOT_SENT: "the secret's `not_sent_to` has this host: its clients send it there, and the gate doesn't",
    Reason.CREDENTIAL_MISMATCH: "the request doesn't carry the rule's credential, or not alone",
    Reason.LEAK: "something that looks like a secret was about to leave, and a rule says `scan: block`",
    Reason.UDP: "no rule lets this UDP out: list its port with `/udp` if it should be; clients may fall back to TCP",
    Reason.ICMP: "ICMP does not leave, whatever the rules say",
    Reason.QUIC: "QUIC does not leave, whatever the rules say; clients fall back to TLS over TCP",
    Reason.DNS_TYPE: "records of this type are not answered",
    Reason.DNS_DENIED: "no connection to the name could pass, so its lookup fails",
    Reason.APPROVAL_GRANTED: "somebody approved it",
    Reason.APPROVAL_DENIED: "somebody was asked and declined",
    Reason.APPROVAL_TIMEOUT: "nobody answered in time",
    Reason.APPROVAL_UNAVAILABLE: "a rule asks for approval, and nobody can give it here, so it is denied",
    Reason.APPROVAL_FLOOD: "too many approvals are waiting",
    Reason.JOURNAL_FAILED: "the decision could not be written to the journal: see its disk",
    Reason.MEMORY_LIMIT: "the task took all the memory it may have: raise `memory` if it needs more",
    Reason.PROCESS_LIMIT: "the task has as many processes and threads as it may: raise `processes` if it needs more",
    Reason.CPU_LIMIT: "the task waited for processors that it may not use: raise `cpu` if that was too long",
    Reason.DISK_LIMIT: "the task has written as much as it may: raise `disk` if it needs more",
    Reason.FILE_LIMIT: "a process of the task has as many files open as it may: raise `files` if it needs more",
    Reason.TIME_LIMIT: "the task ran for as long as it may: raise `timeout` if it needs longer",
    Reason.PROTECTED_PATH: "a `protected` file changed while the task ran: look at it before anything runs it",
}


def meaning(reason: Reason, target: HostName | Address | None) -> str:
    """Say what a reason means of this target, and what can be done; None: the host is no name and no address."""
    otherwise = opened_otherwise(target) if reason is Reason.NON_PUBLIC_ADDRESS and target is not None else ""
    return otherwise or MEANING[reason]


NEEDED: Final = f"a rule `to: {HOST}` with its `ports`"  # by whoever wants a service of this machine


def opened_otherwise(target: HostName | Address) -> str:
    """Say what lets out to a target that no `resolves_to` and no address in `to` opens; empty: those do."""
    if isinstance(target, HostName):
        if target == HOST:
            return f"`{HOST}` is this machine: it needs {NEEDED}"
        return f"the zone `{ZONE}` is exeat's own, and only `{HOST}` leads anywhere" if is_own(target) else ""
    block = None if target.version == 6 and target.scope_id is not None else block_of(normal(target))
    if block is None or block.opening is not Opening.NEVER:
        return ""
    if block.name == "loopback":
        return f"that is the sandbox's own loopback: a service of this machine has the name `{HOST}` and needs {NEEDED}"
    return f"that is {block.name}, and no rule can let anything out to it"
