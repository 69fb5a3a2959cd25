"""Syslog messages (RFC 5424), counted in octets for a stream (RFC 6587 section 3.4.1, RFC 5425 section 4.3).

The header says the kind (MSGID), how severe it is and the host; the body is whatever other shape was asked for. There
is no structured data of our own: its name would need a private enterprise number, and Exeat has none.
"""

from typing import Final

from proxy.telemetry.shapes.record import Record, own_version, severity

AUDIT: Final = 13  # the facility "log audit": RFC 5424 section 6.2.1
_LONGEST_HOST: Final = 255
_LONGEST_ID: Final = 32
_MICROSECONDS: Final = 26  # of a timestamp with nine decimals: what TIME-SECFRAC has room for
_SEVERITIES: Final = (6, 6, 5, 4, 2)  # informational, notice, warning, critical; by ours
_NIL: Final = "-"


def syslog(record: Record, body: str) -> bytes:
    """Return one message with `body`, in ASCII: what is beyond it is spelled out."""
    head = (
        f"<{AUDIT * 8 + _SEVERITIES[severity(record)]}>1",
        f"{record['time'][:_MICROSECONDS]}Z",
        _word(record.get("host"), _LONGEST_HOST),
        "exeat",
        _NIL,  # PROCID: several processes write one journal
        _word(record["kind"], _LONGEST_ID),
        f'[origin software="exeat" swVersion="{own_version()}"]',
    )
    return f"{' '.join(head)} {body}".encode("ascii", "backslashreplace")


def counted(message: bytes) -> bytes:
    """Return a message as a frame: its length in decimal, a space, the message."""
    return b"%d %b" % (len(message), message)


def _word(text: object, longest: int) -> str:
    """Return printable ASCII without spaces, as a header's field has to be (PRINTUSASCII)."""
    shown = "".join(each if "!" <= each <= "~" else "?" for each in str(text or ""))
    return shown[:longest] or _NIL
