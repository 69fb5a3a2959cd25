"""Finds placeholders and other credentials in the head of a request. Pure.

A placeholder is in its place if it is the whole credential, unencoded and once. Anything else is misuse and is never
repaired. `insert_values` inserts only what `read` found: the task can add at most a scheme and a user name.
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
# Fields and parameters that hold credentials, by the words in their names: docs/reference/rules.md lists the services
_WORDS: Final = rb"auth|authorization|bearer|credentials?|jwt|passw(?:or)?d|secret|session|signature|token"
_KEY_OWNER: Final = (
    rb"(?:access|api|app|auth|aws|client|id|job|oauth|private|refresh|secret|service|session|subscription|user)?"
)
_KEY_LIKE: Final = re.compile(
    rb"(?:^|[-_])(?:%b|%b(?:key|keyid|token|secret)|cookie)(?:$|[-_])" % (_WORDS, _KEY_OWNER), re.IGNORECASE
)
_PARAMETERS: Final = re.compile(
    rb"(?:^|[-_.])(?:%b|%b(?:key|keyid|token|secret)|accesskeyid|appid|code|hmac|pwd|sessionid|sid|sig)(?:$|[-_.\[])"
    % (_WORDS, _KEY_OWNER.replace(b"aws", b"aws|awsaccess"))
)
# Names with such words that hold no credential: they mark a request, a page or a form
_NO_CREDENTIAL: Final = re.compile(
    rb"(?:sec-websocket|(?:x-)?(?:idempotency|cache))-key|(?:x-)?(?:csrf|xsrf)-?token|x-stainless-auth"
    rb"|(?:x-ms-|x-)?(?:(?:continuation|cursor|next|page|prev|previous|skip|start|sync)[-_]?)+token"
)
_SESSION_FIELDS: Final = frozenset({b"session-id", b"session_id", b"x-claude-code-session-id"})  # of coding agents
_PROTOCOL_FIELD: Final = b"sec-websocket-protocol"  # browsers send keys in it, with a WebSocket handshake
_KEY_IN_PROTOCOL: Final = re.compile(rb"key|auth|bearer|token|jwt|secret|passw", re.IGNORECASE)


IN_QUERY, IN_FORM = -1, -2
LONGEST_FORM: Final = 64 * 1024  # bytes; no secret is put into a longer one
_FORM_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_OTHER_SEPARATORS: Final = re.compile(rb"[;?]")  # separate parameters for some servers


class SecretUse(NamedTuple):
    """Placeholder in its place: a field (by index), the query or a form. `text`: that text with the real value."""

    secret_value: "SecretValue"
    slot: Slot
    field: int
    text: bytes


class HeadCredentials(NamedTuple):
    """Credentials of a head: placeholders in use, the remaining text, and whether there are other credentials."""

    uses: tuple[SecretUse, ...]
    remaining_texts: tuple[tuple[str, bytes], ...]  # name of the place, and its text
    has_others: bool
    cookies: tuple[bytes, ...] = ()  # values of Cookie, which may be credentials too


def read(path: bytes, fields: "tuple[Field, ...]", secret_values: "tuple[SecretValue, ...]") -> HeadCredentials:
    """Find the credentials in a head. `secret_values`: those that may be sent to the request's destination."""
    uses: list[SecretUse] = []
    remaining_texts: list[tuple[str, bytes]] = []
    has_others = False
    cookies: list[bytes] = []
    names = [name.lower() for name, _ in fields]
    times = Counter(names)
    for number, (name, value) in enumerate(fields):
        lower = names[number]
        shown = f"the header `{name.decode('latin-1')[:64]}`"
        found = _in_field(lower, value, number, secret_values) if times[lower] == 1 else None
        if found is None:
            remaining_texts.append((shown, value))
            if lower == b"cookie":
                cookies.append(value)
            elif (holds_key(lower) and value.strip()) or (lower == _PROTOCOL_FIELD and _KEY_IN_PROTOCOL.search(value)):
                has_others = True
        else:
            use, remainder = found
            uses.append(use)
            remaining_texts.append((shown, remainder))
        remaining_texts.append(("the name of a header", name))
    in_query, remainder, in_query_others = _in_parameters(path, secret_values)
    uses += in_query
    remaining_texts.append(("the URL", remainder))
    return HeadCredentials(tuple(uses), tuple(remaining_texts), has_others or in_query_others, tuple(cookies))


def insert_values(
    path: bytes, fields: "tuple[Field, ...]", uses: tuple[SecretUse, ...]
) -> "tuple[bytes, tuple[Field, ...]]":
    """Return the path and the fields with the values in them."""
    texts = {use.field: use.text for use in uses}
    return texts.get(IN_QUERY, path), tuple(
        (name, texts.get(number, value)) for number, (name, value) in enumerate(fields)
    )


def is_form(fields: "tuple[Field, ...]") -> bool:
    """Whether the body is a form that can be read; OAuth clients send secrets in one (RFC 6749 section 2.3.1)."""
    values = {name.lower(): value for name, value in fields}
    kind = values.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/x-www-form-urlencoded" or b"content-encoding" in values:
        return False
    length = values.get(b"content-length", b"0")  # decided before any of a long body is buffered
    return _FORM_LENGTH.fullmatch(length) is not None and int(length) <= LONGEST_FORM


def in_form(content: bytes, secret_values: "tuple[SecretValue, ...]") -> tuple[list[SecretUse], bytes]:
    """Find placeholders as values in a form; returns the remaining text too. Ignores other credentials."""
    uses, remainder, _ = _in_parameters(b"?" + content, secret_values, SlotKind.FORM)
    return uses, remainder


def _in_field(
    name: bytes, value: bytes, number: int, secret_values: "tuple[SecretValue, ...]"
) -> tuple[SecretUse, bytes] | None:
    for secret_value in secret_values:
        for slot in secret_value.secret.slots:
            found: tuple[bytes, bytes] | None = None
            if slot.kind is SlotKind.HEADER and slot.name.encode() == name:
                found = _after_scheme(value, secret_value)
            elif slot.kind is SlotKind.BASIC and name == _AUTHORIZATION:
                found = _in_basic(value, secret_value)
            if found is not None:
                return SecretUse(secret_value, slot, number, found[0]), found[1]
    return None


def _after_scheme(value: bytes, secret_value: "SecretValue") -> tuple[bytes, bytes] | None:
    """Find the placeholder by itself or after one word, as in `Bearer`."""
    if not value.endswith(secret_value.placeholder):
        return None
    before = value[: -len(secret_value.placeholder)]
    if before and not _SCHEME.fullmatch(before):
        return None
    return before + secret_value.value, before


def _in_basic(value: bytes, secret_value: "SecretValue") -> tuple[bytes, bytes] | None:
    """Find it as the password of basic authentication (RFC 7617), or as the user if there is no password."""
    match = _BASIC.fullmatch(value)
    if match is None:
        return None
    try:
        decoded = base64.b64decode(match[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    user, colon, password = decoded.partition(b":")
    if not colon or any(byte < 0x20 or byte == 0x7F for byte in decoded):
        return None
    if password == secret_value.placeholder:
        filled, remainder = user + b":" + secret_value.value, user
    elif user == secret_value.placeholder and password in (b"", b"x-oauth-basic") and b":" not in secret_value.value:
        filled, remainder = secret_value.value + b":" + password, password
    else:
        return None
    return b"Basic " + base64.b64encode(filled), remainder


def _in_parameters(
    path: bytes, secret_values: "tuple[SecretValue, ...]", kind: SlotKind = SlotKind.QUERY
) -> tuple[list[SecretUse], bytes, bool]:
    """Find it as a parameter's value; returns the remaining text too, and whether other parameters hold credentials."""
    before, question, query = path.partition(b"?")
    if not question:
        return [], path, False
    parts = query.split(b"&")
    names = [_parameter_name(part) for part in parts]
    has_others = False
    times = Counter(names)
    remainder, filled, use = list(parts), list(parts), None
    for number, part in enumerate(parts):
        name, _, value = part.partition(b"=")
        slot = Slot(kind, name.decode("latin-1"))
        secret_value = next(
            (
                candidate
                for candidate in secret_values
                if slot in candidate.secret.slots and candidate.placeholder == value
            ),
            None,
        )
        if secret_value is not None and use is None and times[name.lower()] == 1 and b";" not in query:
            remainder[number] = name
            filled[number] = name + b"=" + quote_from_bytes(secret_value.value, safe="").encode()
            use = SecretUse(secret_value, slot, IN_QUERY if kind is SlotKind.QUERY else IN_FORM, b"")
        elif value and (is_key_parameter(names[number]) or _hides_key(part)):
            has_others = True
    if use is None:
        return [], path, has_others
    return [use._replace(text=before + b"?" + b"&".join(filled))], before + b"?" + b"&".join(remainder), has_others


def _hides_key(part: bytes) -> bool:
    """Whether a server that splits at `;` or `?` would find a credential in a parameter: `a=1;key=theirs`."""
    if b";" not in part and b"?" not in part:
        return False
    pieces = _OTHER_SEPARATORS.split(part)
    return any(piece.partition(b"=")[2] and is_key_parameter(_parameter_name(piece)) for piece in pieces)


def _parameter_name(part: bytes) -> bytes:
    return unquote_to_bytes(unquote_to_bytes(part.partition(b"=")[0])).lower()


def is_key_parameter(name: bytes) -> bool:
    """Whether a parameter with this lower-case name holds a credential."""
    return _PARAMETERS.search(name) is not None and _NO_CREDENTIAL.fullmatch(name) is None


def holds_key(name: bytes) -> bool:
    """Whether a field with this lower-case name holds a credential."""
    return _cached_is_key_field(name) if len(name) <= _LONGEST_CACHED_NAME else _is_key_field(name)


def _is_key_field(name: bytes) -> bool:
    return (
        _KEY_LIKE.search(alike(name)) is not None
        and _NO_CREDENTIAL.fullmatch(name) is None
        and name not in _SESSION_FIELDS
    )


_LONGEST_CACHED_NAME: Final = 64  # bytes; bounds the cache, since the task chooses the names
_cached_is_key_field = lru_cache(512)(_is_key_field)
