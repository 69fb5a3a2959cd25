"""Table of reasons: what each means and what to do about it. Block pages, `exeat explain` and the docs all read it."""

from typing import Final, NamedTuple

from rules.values.addresses import Address, Opening, find_block, normalize
from rules.values.names import HOST, ZONE, HostName, is_exeat_name
from rules.verdicts import Reason

SUGGEST: Final = "`exeat explain --suggest EVENT` on the host prints the rule that would allow it"


class ReasonText(NamedTuple):
    """Texts for one reason."""

    meaning: str  # a clause without a full stop, as after "denied:"
    remedy: str  # what helps, as an imperative clause; names the component or the key that has to change
    detail: str = ""  # further sentences, for the reference page alone


NEEDED: Final = f"a rule `to: {HOST}` with its `ports`"  # for a service of this machine

REASONS: Final[dict[Reason, ReasonText]] = {
    Reason.RULE: ReasonText("a rule denies this", "narrow the rule that is named, or give it an `except`"),
    Reason.NO_RULE: ReasonText(
        "no rule allows this",
        SUGGEST,
        "`nearest` names the rule that came closest, and the field that did not match.",
    ),
    Reason.NO_COMMAND: ReasonText(
        "no entry of `commands` matches the program, so it may start", "add an entry if it needs an approval to start"
    ),
    Reason.DEFAULT_RULE: ReasonText(
        "only a rule with `default: true` matches", "add a rule for this host; a rule that is no default overrides it"
    ),
    Reason.LAYER: ReasonText(
        "a rule file with `layer` does not allow this",
        "ask the owner of that file to allow it",
        "A layer decides by a rule, by a default rule, or, as a ceiling, by having no rule that allows it.",
    ),
    Reason.EXPIRED: ReasonText(
        "the rule or the approval that allowed this has expired",
        "set a later `until` in the rule, or approve it for longer",
        "A command has this reason when it, or its arguments, changed after the approval.",
    ),
    Reason.TAINTED: ReasonText(
        "the task has read untrusted content, and the rule blocks tasks that have",
        "start a new task, or remove `when: tainted` from the rule",
    ),
    Reason.INVALID_NAME: ReasonText(
        "the host is not a valid name or address",
        "correct the name in the client",
        "Empty and long labels, control characters, `%`, white space, and names that end in a number are invalid.",
    ),
    Reason.NAME_MISMATCH: ReasonText(
        "the names in DNS, TLS and HTTP differ",
        "use one connection for each host; allow each name in a rule",
        "Domain fronting looks like this, and so does a client that reuses a connection for another host.",
    ),
    Reason.SNI_MISSING: ReasonText(
        "the TLS client does not name the server (no SNI)", "use a client that sends SNI, or allow the address itself"
    ),
    Reason.ECH: ReasonText(
        "the TLS client hides the server's name (Encrypted Client Hello)",
        "turn Encrypted Client Hello off in the client, or remove `tls: splice` from the rule",
    ),
    Reason.PROTOCOL_MISMATCH: ReasonText(
        "the client speaks another protocol than the rules allow on this port",
        "list the port with its protocol (`/tcp`, `/tls` or `/http`), or set `tls: splice` where TLS carries no HTTP",
    ),
    Reason.NON_PUBLIC_ADDRESS: ReasonText(
        "the address, or the one that the name resolves to, is not public",
        f"list the address in the rule's `resolves_to`; a service of this machine needs {NEEDED}",
        "Private, loopback, link-local, cloud metadata, multicast and reserved addresses are not public. Public "
        "addresses of this host count as its own, and no `resolves_to` opens them.",
    ),
    Reason.ADDRESS_NOT_LISTED: ReasonText(
        "no rule that allows the name lists the address that it resolves to",
        "add the address to the rule's `resolves_to` or `to`, if it is meant",
    ),
    Reason.UNRESOLVED: ReasonText("the name does not resolve", "check the name; check the resolver of the host"),
    Reason.AMBIGUOUS_PATH: ReasonText(
        "servers read this path in different ways",
        "send the path in its plain spelling",
        "`..`, backslashes, control characters, broken escapes and bytes that are not UTF-8 are ambiguous.",
    ),
    Reason.AMBIGUOUS_REQUEST: ReasonText(
        "servers read this request in different ways",
        "send it as RFC 9112 defines it: one host, one length, one spelling",
        "Two hosts, two lengths, a header that overrides method, path or host, a method in lower case, and git "
        "requests that git itself does not send are ambiguous.",
    ),
    Reason.URL_TOO_LONG: ReasonText("the URL is longer than the rule allows", "raise `max_url` in the rule"),
    Reason.BODY_NOT_ALLOWED: ReasonText(
        "the rule allows no body with this method", "set `body: true` in the rule, if the body may leave"
    ),
    Reason.TLS_CLIENT_DISTRUST: ReasonText(
        "the client does not trust the CA of the gate",
        "give the client the trust store of the sandbox, or set `tls: splice` for a client that pins certificates",
    ),
    Reason.UPSTREAM_UNTRUSTED: ReasonText(
        "the server's certificate is not valid for its name", "check the server, and the trust store of the host"
    ),
    Reason.UPSTREAM_FAILED: ReasonText(
        "the server could not be reached, or ended the connection early",
        "check that the host itself reaches the server",
    ),
    Reason.CLIENT_CERTIFICATE: ReasonText(
        "the server asks for a client certificate, and the gate has none for it",
        "add a secret with `in: client_certificate`, or set `tls: splice` for the host",
    ),
    Reason.LIMIT_EXCEEDED: ReasonText(
        "a limit of the rules or of the gate is reached",
        "raise the rule's `limits`; a limit for the lifetime of a task needs a new task",
    ),
    Reason.SECRET_MISUSE: ReasonText(
        "a placeholder was sent where its secret does not belong",
        "send it to the secret's `hosts`, in the place that its `in` names, over TLS",
    ),
    Reason.SECRET_NOT_SENT: ReasonText(
        "the secret's `not_sent_to` lists this host",
        "send the request without the placeholder, or list the host in the secret's `hosts`",
    ),
    Reason.CREDENTIAL_MISMATCH: ReasonText(
        "the request does not carry the credential that the rule requires, or not only that one",
        "send the placeholder of the rule's `credential` and no other credential",
    ),
    Reason.LEAK: ReasonText(
        "the request carries something that looks like a secret",
        "remove it from the request; where it may be sent, set `scan: flag` on a rule for that host",
    ),
    Reason.UDP: ReasonText("no rule allows this UDP", "use TCP, or list the port with `/udp` in a rule"),
    Reason.ICMP: ReasonText("ICMP is never allowed", "use TCP"),
    Reason.QUIC: ReasonText("QUIC is never allowed", "use HTTP/2 or HTTP/1.1; clients fall back to them"),
    Reason.DNS_TYPE: ReasonText(
        "no rule allows this type of DNS record", "connect by name, or list the type in a rule's `dns_types`"
    ),
    Reason.DNS_DENIED: ReasonText("no rule allows a connection to this name", SUGGEST),
    Reason.APPROVAL_GRANTED: ReasonText("a person approved it", ""),
    Reason.APPROVAL_DENIED: ReasonText("a person rejected it", "ask the person who rejected it"),
    Reason.APPROVAL_TIMEOUT: ReasonText(
        "no approver answered in time, or the client disconnected first",
        "try again: an answer that comes later counts for the next attempt; or raise the rule's `hold`",
    ),
    Reason.APPROVAL_UNAVAILABLE: ReasonText(
        "a rule requires an approval, and no approver can be reached",
        "check `exeat status` and `exeat approvals`; or use `allow` or `flag` in the rule",
        "The approvals server cannot be reached, or an approval would not allow the attempt.",
    ),
    Reason.APPROVAL_FLOOD: ReasonText(
        "too many approval requests are waiting, or too many of this task were rejected",
        "answer those that wait: `exeat approvals`",
    ),
    Reason.JOURNAL_FAILED: ReasonText(
        "the decision could not be written to the journal", "free space on the disk of the journal"
    ),
    Reason.GATE_ERROR: ReasonText(
        "the gate failed, so it stayed closed", "read `exeat log --kind gate.error`, and report it"
    ),
    Reason.MEMORY_LIMIT: ReasonText(
        "the task used all of its memory, and processes of it were killed", "raise `memory` under `sandbox.limits`"
    ),
    Reason.PROCESS_LIMIT: ReasonText(
        "the task has as many processes and threads as it may", "raise `processes` under `sandbox.limits`"
    ),
    Reason.CPU_LIMIT: ReasonText("the task waited for CPU time", "raise `cpu` under `sandbox.limits`"),
    Reason.DISK_LIMIT: ReasonText(
        "the task wrote as much as it may",
        "raise `disk` under `sandbox.limits`, or remove files",
        "Home, `/tmp` and the like were full; or the changes of a reviewed workspace were too large.",
    ),
    Reason.FILE_LIMIT: ReasonText(
        "a process of the task has as many files open as it may", "raise `files` under `sandbox.limits`"
    ),
    Reason.TIME_LIMIT: ReasonText("the task reached its `timeout` and was ended", "raise `timeout` under `sandbox`"),
    Reason.PROTECTED_PATH: ReasonText(
        "a `protected` file of the workspace was changed while the task ran",
        "look at it with `exeat changes` before anything runs it",
    ),
}


def describe_reason(reason: Reason, target: HostName | Address | None) -> str:
    """Return what a reason means for this target, and the remedy; None: the host is no name and no address."""
    otherwise = opened_otherwise(target) if reason is Reason.NON_PUBLIC_ADDRESS and target is not None else ""
    return otherwise or "; ".join(filter(None, (REASONS[reason].meaning, remedy_for(reason))))


def remedy_for(reason: Reason, event: str = "") -> str:
    """Return what helps; `event`: the id of what was tried, if something was."""
    text = REASONS[reason].remedy
    return text.replace("EVENT", event) if event or text is not SUGGEST else "add a rule that allows it"


def opened_otherwise(target: HostName | Address) -> str:
    """Return how to allow a target that no `resolves_to` or address in `to` can open; empty if they can."""
    if isinstance(target, HostName):
        if target == HOST:
            return f"`{HOST}` is this machine: it needs {NEEDED}"
        return f"the zone `{ZONE}` is exeat's own, and only `{HOST}` is a service" if is_exeat_name(target) else ""
    block = None if target.version == 6 and target.scope_id is not None else find_block(normalize(target))
    if block is None or block.opening is not Opening.NEVER:
        return ""
    if block.name == "loopback":
        return f"that is the sandbox's own loopback: a service of this machine has the name `{HOST}` and needs {NEEDED}"
    return f"that is {block.name}, and no rule can allow it"
