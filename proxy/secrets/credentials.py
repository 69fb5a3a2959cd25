"""Finds placeholders and other credentials in the head of a request. Pure.

A placeholder is in its place if it is there whole, plainly and once: any other spelling is misuse, never repaired.
`swapped` puts in what was read here and nothing else: a task's text around a value is one word and a user at most.
"""

import base64
import binascii
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from proxy.request.override_headers import alike
from rules.secrets import Slot, SlotKind

if TYPE_CHECKING:
    from proxy.request.request_head import Field
    from proxy.secrets.values import SecretValue

_BASIC: Final = re.compile(rb"basic +([A-Za-z0-9+/]+={0,2}) *", re.IGNORECASE)
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9-]{0,31} +")
_AUTHORIZATION: Final = b"authorization"
# Names of fields and parameters that hold credentials, by the words in them: docs/reference/rules.md has whose they are
_WORDS: Final = rb"auth|authorization|bearer|credentials?|jwt|passw(?:or)?d|secret|session|signature|token"
_OF: Final = (
    rb"(?:access|api|app|auth|aws|client|id|job|oauth|private|refresh|secret|service|session|subscription|user)?"
)
_KEY_LIKE: Final = re.compile(
    rb"(?:^|[-_])(?:%b|%b(?:key|keyid|token|secret)|cookie)(?:$|[-_])" % (_WORDS, _OF), re.IGNORECASE
)
_PARAMETERS: Final = re.compile(
    rb"(?:^|[-_.])(?:%b|%b(?:key|keyid|token|secret)|accesskeyid|appid|code|hmac|pwd|sessionid|sid|sig)(?:$|[-_.\[])"
    % (_WORDS, _OF.replace(b"aws", b"aws|awsaccess"))
)
# What is called so and is none: what marks a request, a page or a form, and gets nobody in
_NONE: Final = re.compile(
    rb"(?:sec-websocket|(?:x-)?(?:idempotency|cache))-key|(?:x-)?(?:csrf|xsrf)-?token|x-stainless-auth"
    rb"|(?:x-ms-|x-)?(?:(?:continuation|cursor|next|page|prev|previous|skip|start|sync)[-_]?)+token"
)
_CONVERSATIONS: Final = frozenset({b"session-id", b"session_id", b"x-claude-code-session-id"})  # fields of agents' own
_OFFERED: Final = b"sec-websocket-protocol"  # browsers' way to send a key with a WebSocket's handshake
_KEY_OFFERED: Final = re.compile(rb"key|auth|bearer|token|jwt|secret|passw", re.IGNORECASE)


IN_QUERY, IN_FORM = -1, -2
LONGEST_FORM: Final = 64 * 1024  # bytes; no secret is put into a longer one
_SHORT: Final = re.compile(rb"[0-9]{1,9}")
_BETWEEN: Final = re.compile(rb"[;?]")  # what else than `&` parameters are between, to some servers


class SecretUse(NamedTuple):
    """Placeholder in its place: a field (by number), the query or a form. `text`: the same with the value."""

    held: "SecretValue"
    slot: Slot
    field: int
    text: bytes


class HeadCredentials(NamedTuple):
    """What `read` found: uses, what is left of the head when they are taken out, and whether other credentials are."""

    uses: tuple[SecretUse, ...]
    rest: tuple[tuple[str, bytes], ...]  # what it is called, and the text
    others: bool
    cookies: tuple[bytes, ...] = ()  # the fields of them, which may be others too


def read(path: bytes, fields: "tuple[Field, ...]", here: "tuple[SecretValue, ...]") -> HeadCredentials:
    """Read a head; `here` are those secrets that belong to where it goes."""
    uses: list[SecretUse] = []
    rest: list[tuple[str, bytes]] = []
    others = False
    cookies: list[bytes] = []
    names = [name.lower() for name, _ in fields]
    times = Counter(names)
    for number, (name, value) in enumerate(fields):
        lower = names[number]
        shown = f"the header `{name.decode('latin-1')[:64]}`"
        found = _in_field(lower, value, number, here) if times[lower] == 1 else None
        if found is None:
            rest.append((shown, value))
            if lower == b"cookie":
                cookies.append(value)
            elif (holds_key(lower) and value.strip()) or (lower == _OFFERED and _KEY_OFFERED.search(value)):
                others = True
        else:
            use, left = found
            uses.append(use)
            rest.append((shown, left))
        rest.append(("the name of a header", name))
    in_query, left, more = _in_parameters(path, here)
    uses += in_query
    rest.append(("the URL", left))
    return HeadCredentials(tuple(uses), tuple(rest), others or more, tuple(cookies))


def insert_values(
    path: bytes, fields: "tuple[Field, ...]", uses: tuple[SecretUse, ...]
) -> "tuple[bytes, tuple[Field, ...]]":
    """Return the path and the fields with the values in them."""
    texts = {use.field: use.text for use in uses}
    return texts.get(IN_QUERY, path), tuple(
        (name, texts.get(number, value)) for number, (name, value) in enumerate(fields)
    )


def is_form(fields: "tuple[Field, ...]") -> bool:
    """Whether what follows is a form that can be read: OAuth's clients send secrets so (RFC 6749 section 2.3.1)."""
    values = {name.lower(): value for name, value in fields}
    kind = values.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/x-www-form-urlencoded" or b"content-encoding" in values:
        return False
    length = values.get(b"content-length", b"0")  # of one that is too long nothing has to be held to know that
    return _SHORT.fullmatch(length) is not None and int(length) <= LONGEST_FORM


def in_form(content: bytes, here: "tuple[SecretValue, ...]") -> tuple[list[SecretUse], bytes]:
    """Find it as a field's value in a form; returns too what is left. Other credentials in it aren't looked for."""
    uses, left, _ = _in_parameters(b"?" + content, here, SlotKind.FORM)
    return uses, left


def _in_field(
    name: bytes, value: bytes, number: int, here: "tuple[SecretValue, ...]"
) -> tuple[SecretUse, bytes] | None:
    for held in here:
        for slot in held.secret.slots:
            found: tuple[bytes, bytes] | None = None
            if slot.kind is SlotKind.HEADER and slot.name.encode() == name:
                found = _after_a_word(value, held)
            elif slot.kind is SlotKind.BASIC and name == _AUTHORIZATION:
                found = _in_basic(value, held)
            if found is not None:
                return SecretUse(held, slot, number, found[0]), found[1]
    return None


def _after_a_word(value: bytes, held: "SecretValue") -> tuple[bytes, bytes] | None:
    """Find the placeholder by itself or after one word, as in `Bearer`."""
    if not value.endswith(held.placeholder):
        return None
    before = value[: -len(held.placeholder)]
    if before and not _SCHEME.fullmatch(before):
        return None
    return before + held.value, before


def _in_basic(value: bytes, held: "SecretValue") -> tuple[bytes, bytes] | None:
    """Find it as the password of basic authentication (RFC 7617), or as the user of one that has none."""
    match = _BASIC.fullmatch(value)
    if match is None:
        return None
    try:
        said = base64.b64decode(match[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    user, colon, password = said.partition(b":")
    if not colon or any(byte < 0x20 or byte == 0x7F for byte in said):
        return None
    if password == held.placeholder:
        real, left = user + b":" + held.value, user
    elif user == held.placeholder and password in (b"", b"x-oauth-basic") and b":" not in held.value:
        real, left = held.value + b":" + password, password
    else:
        return None
    return b"Basic " + base64.b64encode(real), left


def _in_parameters(
    path: bytes, here: "tuple[SecretValue, ...]", kind: SlotKind = SlotKind.QUERY
) -> tuple[list[SecretUse], bytes, bool]:
    """Find it as a parameter's value; returns too what is left, and whether other parameters hold credentials."""
    before, question, query = path.partition(b"?")
    if not question:
        return [], path, False
    parts = query.split(b"&")
    names = [_name(part) for part in parts]
    others = False
    times = Counter(names)
    left, real, use = list(parts), list(parts), None
    for number, part in enumerate(parts):
        name, _, value = part.partition(b"=")
        slot = Slot(kind, name.decode("latin-1"))
        held = next((one for one in here if slot in one.secret.slots and one.placeholder == value), None)
        if held is not None and use is None and times[name.lower()] == 1 and b";" not in query:
            left[number] = name
            real[number] = name + b"=" + quote_from_bytes(held.value, safe="").encode()
            use = SecretUse(held, slot, IN_QUERY if kind is SlotKind.QUERY else IN_FORM, b"")
        elif value and (is_key_parameter(names[number]) or _hides_key(part)):
            others = True
    if use is None:
        return [], path, others
    return [use._replace(text=before + b"?" + b"&".join(real))], before + b"?" + b"&".join(left), others


def _hides_key(part: bytes) -> bool:
    """Whether one of the parameters that some servers make of a part is a credential: `a=1;key=theirs`."""
    if b";" not in part and b"?" not in part:
        return False
    pieces = _BETWEEN.split(part)
    return any(piece.partition(b"=")[2] and is_key_parameter(_name(piece)) for piece in pieces)


def _name(part: bytes) -> bytes:
    return unquote_to_bytes(unquote_to_bytes(part.partition(b"=")[0])).lower()


def is_key_parameter(name: bytes) -> bool:
    """Whether a parameter with this name, in lower case, is one that credentials stand in."""
    return _PARAMETERS.search(name) is not None and _NONE.fullmatch(name) is None


def holds_key(name: bytes) -> bool:
    """Whether a field with this name, in lower case, is one that credentials stand in."""
    return _of_a_short_name(name) if len(name) <= _SHORT_NAME else _is_called_so(name)


def _is_called_so(name: bytes) -> bool:
    return _KEY_LIKE.search(alike(name)) is not None and _NONE.fullmatch(name) is None and name not in _CONVERSATIONS


_SHORT_NAME: Final = 64  # bytes: what is remembered has a bound, and a task writes the names
_of_a_short_name = lru_cache(512)(_is_called_so)
