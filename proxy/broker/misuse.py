"""What is wrong with a placeholder that came where it doesn't belong, in words: for the page and the `tamper` event.

It says no more than the rule file says of the secret, and what the task did.
"""

from typing import TYPE_CHECKING, Final

from rules.secrets import SlotKind

if TYPE_CHECKING:
    from rules.addresses import Address
    from rules.names import HostName
    from rules.secrets import Secret, Slot

_MOST: Final = 3  # hosts that are named
_HTTPS: Final = 443


def told(secret: "Secret", where: str, target: "HostName | Address", port: int, *, tls: bool) -> str:
    """Return the sentence on the placeholder of `secret`, which a request to a place has in `where`."""
    which = f"the placeholder of `{secret.id}`"
    places = " or ".join(_place(slot) for slot in secret.slots)
    belongs = f"it belongs to {_hosts(secret)} over TLS, in {places}"
    if secret.belongs(target, port, tls=tls):
        if where.lower() in {_place(slot).lower() for slot in secret.slots} or _is_authorization(secret, where):
            return f"{which} is in {where}, but not whole, plainly and once, as it has to be; it belongs in {places}"
        return f"{which} is in {where}, where it doesn't belong; it belongs in {places}"
    sent = f"{which} was sent to `{_spelled(target, port)}`"
    if not tls and any(host == target for host, _ in secret.hosts):
        return f"{sent} without TLS, in {where}, and TLS is what is missing: {belongs}"
    return f"{sent}, in {where}; {belongs}"


def not_sent(secret: "Secret", target: "HostName | Address", port: int) -> str:
    """Return the sentence on a placeholder that a client has sent to a host that the secret's `not_sent_to` lists."""
    where = _spelled(target, port)
    return f"`{secret.id}` is not sent to `{where}`, which its `not_sent_to` lists; it belongs to {_hosts(secret)}"


def _is_authorization(secret: "Secret", where: str) -> bool:
    """Whether this is the header that basic authentication is in."""
    return where.lower() == "the header `authorization`" and any(slot.kind is SlotKind.BASIC for slot in secret.slots)


def _hosts(secret: "Secret") -> str:
    shown = ", ".join(f"`{_spelled(*host)}`" for host in secret.hosts[:_MOST])
    more = len(secret.hosts) - _MOST
    return f"{shown} and {more} more" if more > 0 else shown


def _spelled(host: "HostName | Address", port: int) -> str:
    if port == _HTTPS:
        return str(host)
    return f"{host}:{port}" if ":" not in str(host) else f"[{host}]:{port}"


def _place(slot: "Slot") -> str:
    return {
        SlotKind.HEADER: f"the header `{slot.name}`",
        SlotKind.BASIC: "basic authentication",
        SlotKind.QUERY: f"the parameter `{slot.name}`",
        SlotKind.FORM: f"the form's field `{slot.name}`",
        SlotKind.CLIENT_CERTIFICATE: "a handshake",
        SlotKind.AWS: "what a signature is made with",
    }[slot.kind]
