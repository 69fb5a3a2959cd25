"""A value, a body, and what looks for one in the other."""

import base64
import random
import struct

from proxy.dlp.body_scan import Body, SecretLeakError
from proxy.event_loop.turn import run_at_once
from proxy.secrets import SecretInjector, SecretValue
from proxy.secrets.detection import OwnSecrets
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from rules.verdicts import Scan
from tests.proxy.leaky import some

VALUE = ("sk-" + some(45)).encode()
PLACEHOLDER = "sk-" + some(45)
FOUND = "the value of the secret `key`"


def held(ident, value, placeholder):
    secret = Secret(
        ident,
        Source(SourceKind.ENV, ("X",)),
        ident.upper(),
        ((HostName("x.example"), 443),),
        (Slot(SlotKind.HEADER, "x-key"),),
    )
    return SecretValue(secret, value, placeholder)


def broker(value=VALUE, placeholder=PLACEHOLDER):
    return SecretInjector([held("key", value, placeholder)])


def b64(text, before=b"", after=b""):
    return base64.b64encode(before + text + after)


NOISE = random.Random(11).randbytes(1 << 16)  # the same in every process of a test run


# --- bodies ---


def body(action=Scan.FLAG, secrets=None, **more):
    if secrets is None:
        return Body(action, None, lambda _: False, longest=0, **more)
    own = OwnSecrets(secrets.values_to_find)
    return Body(action, own.watch(), secrets.is_placeholder, longest=own.longest, **more)


def take(one, data):
    return run_at_once(one.scan(data))


def sent(one, pieces):
    """What leaves of a body that comes in pieces, what is found, and why it ended."""
    left, found = b"", []
    try:
        for piece in pieces:
            free, more = take(one, piece)
            left, found = left + free, found + more
        free, more = one.end()
    except SecretLeakError as leak:
        return left, found, str(leak)
    return left + free, found + more, ""


def cut(text, size):
    return [text[at : at + size] for at in range(0, len(text), size)]


LONG = b"a line of text that is nothing\n" * 1500  # 46 KB


# --- WebSocket ---


def frame(text, *, opcode=1, fin=True, reserved=0, masked=True):
    mask = NOISE[:4]
    size = len(text)
    head = bytes([(0x80 if fin else 0) | reserved | opcode])
    head += (
        bytes([0x80 | size])
        if size < 126
        else bytes([0x80 | 126]) + struct.pack(">H", size)
        if size < 65536
        else bytes([0x80 | 127]) + struct.pack(">Q", size)
    )
    if not masked:
        return bytes([head[0], head[1] & 0x7F]) + head[2:] + text
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
