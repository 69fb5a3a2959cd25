"""Whom a client wants, and whom it is shown a certificate of. Pure."""

from typing import TYPE_CHECKING

from rules.names import HostName, InvalidName

if TYPE_CHECKING:
    from proxy.gate.admitted import Admitted


def sni_of(admitted: "Admitted") -> str | None:
    """Return what the ClientHello says, as it says it."""
    return admitted.hello.sni if admitted.hello else None


def shown_host(admitted: "Admitted") -> str:
    """Return whom the certificate is for: who may be asked here; of a refused client, whom it wants."""
    wanted = sni_of(admitted)
    if wanted and not admitted.decision.passes:
        try:
            return HostName.parse(wanted)
        except InvalidName:
            pass  # no client takes a certificate for that
    return str(admitted.target)
