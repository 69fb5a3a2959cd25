"""AWS Signature Version 4: checks what a request signs, and signs it anew. Pure.

Source: "Create a signed AWS API request" (AWS IAM user guide), "Authenticating Requests" (Amazon S3 API reference).
Clients spell a path and a query in different ways before they sign (S3 encodes a path once, others twice): `spellings`.
"""

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.request.request_head import Field
    from proxy.secrets.values import AwsKeys

ALGORITHM: Final = b"AWS4-HMAC-SHA256"
END: Final = b"aws4_request"
_UNRESERVED: Final = "-_.~"  # RFC 3986 section 2.3; the rest is percent-encoded in upper case
_OUTSIDE: Final = re.compile(rb"[^A-Za-z0-9\-_.~/%]")


class Scope(NamedTuple):
    """Credential scope of a signing key: day (`20130524`), region and service."""

    day: bytes
    region: bytes
    service: bytes

    @property
    def text(self) -> bytes:
        """The scope as a signature and a request spell it."""
        return b"/".join((*self, END))


def signing_key(secret: bytes, scope: Scope) -> bytes:
    """Derive the key of a scope from a secret access key."""
    key = b"AWS4" + secret
    for part in (*scope, END):
        key = hmac.digest(key, part, "sha256")
    return key


def signature(key: bytes, scope: Scope, date: bytes, canonical: bytes) -> bytes:
    """Sign a canonical request, in hexadecimal. `date`: as in `X-Amz-Date`, `20130524T000000Z`."""
    digest = hashlib.sha256(canonical).hexdigest().encode()
    return hmac.digest(key, b"\n".join((ALGORITHM, date, scope.text, digest)), "sha256").hex().encode()


def canonical_request(
    method: bytes, path: bytes, query: bytes, headers: "Sequence[tuple[bytes, Sequence[bytes]]]", payload: bytes
) -> bytes:
    """Build the canonical request. `path` and `query` are encoded already; `headers` are in lower case and sorted."""
    lines = [name + b":" + b",".join(b" ".join(value.split()) for value in values) for name, values in headers]
    return b"\n".join((method, path, query, *lines, b"", b";".join(name for name, _ in headers), payload))


def spellings(path: bytes, query: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the encodings of path and query that clients sign, the commonest first; their number is fixed."""
    once = _OUTSIDE.sub(lambda byte: b"%%%02X" % byte[0][0], path)
    paths = (
        once,
        _encode_percent(once),
        _encode_percent(_remove_dot_segments(once)),
        _encode(unquote_to_bytes(path), "/"),
    )
    queries = (_canonical_query(query), _canonical_query(query.replace(b"+", b"%20")))
    return tuple((one, other) for other in queries for one in paths)


def _encode_percent(path: bytes) -> bytes:
    return path.replace(b"%", b"%25")


def _remove_dot_segments(path: bytes) -> bytes:
    """Remove dot segments and empty segments (RFC 3986 section 5.2.4), as all services but S3 do."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in {b"", b"."}:
            kept.append(segment)
    ends = b"/" if kept and path.endswith((b"/", b"/.", b"/..")) else b""
    return b"/" + b"/".join(kept) + ends


def _canonical_query(query: bytes) -> bytes:
    pairs = [part.partition(b"=") for part in query.split(b"&") if part]
    texts = sorted((_encode(unquote_to_bytes(name)), _encode(unquote_to_bytes(value))) for name, _, value in pairs)
    return b"&".join(name + b"=" + value for name, value in texts)


def _encode(text: bytes, kept: str = "") -> bytes:
    return quote_from_bytes(text, safe=_UNRESERVED + kept).encode()


_CREDENTIAL: Final = rb"([A-Za-z0-9_]+)/([0-9]{8})/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/aws4_request"
_NAMES: Final = rb"[a-z0-9_.-]+(?:;[a-z0-9_.-]+)*"
_AUTHORIZATION: Final = re.compile(
    rb"AWS4-HMAC-SHA256 +Credential=%b, *SignedHeaders=(%b), *Signature=([0-9a-f]{64})" % (_CREDENTIAL, _NAMES)
)
_IN_QUERY: Final = re.compile(_CREDENTIAL)
_SIGNED: Final = re.compile(_NAMES)
_SIGNATURE: Final = re.compile(rb"[0-9a-f]{64}")
_DATE: Final = re.compile(rb"[0-9]{8}T[0-9]{6}Z")
_HASH: Final = re.compile(rb"[0-9a-f]{64}")
_UNSIGNED: Final = b"UNSIGNED-PAYLOAD"
_UNSIGNED_PAYLOADS: Final = frozenset({_UNSIGNED, b"STREAMING-UNSIGNED-PAYLOAD-TRAILER"})
# Services whose presigned URLs don't sign the body
_SERVICES_WITHOUT_BODY_HASH: Final = frozenset({b"s3", b"s3-object-lambda", b"s3-outposts", b"s3express"})
# Fields that end at the gate, or that the gate sets (RFC 9110 section 7.6.1)
_HOP_BY_HOP: Final = frozenset({
    b"authorization", b"connection", b"expect", b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
_HASH_HEADER, _DATE_HEADER, _TOKEN_HEADER = b"x-amz-content-sha256", b"x-amz-date", b"x-amz-security-token"
_PARAMETERS: Final = frozenset({
    b"x-amz-algorithm", b"x-amz-credential", b"x-amz-date", b"x-amz-signedheaders", b"x-amz-signature", _TOKEN_HEADER,
})  # fmt: skip
IN_QUERY: Final = -1


class SignatureClaim(NamedTuple):
    """Signature in a request that names a placeholder."""

    keys: "AwsKeys"
    scope: Scope
    date: bytes
    names: tuple[bytes, ...]  # of the signed fields
    signature: bytes
    field: int  # index of `Authorization`, or IN_QUERY
    token: bool  # has the placeholder of the session token in its place
    payload: bytes | None  # body hash or keyword that the request names; None: none, so compute the hash
    flaw: str = ""  # why the gate can't sign it anew

    @property
    def task_text(self) -> bytes:
        """The parts that the task chose, to search for placeholders."""
        return b" ".join((*self.scope, *self.names))


def find_claim(path: bytes, fields: "tuple[Field, ...]", keys_for_host: "tuple[AwsKeys, ...]") -> SignatureClaim | None:
    """Find the signature that names a placeholder; None: there is none, or it is ambiguous."""
    values: dict[bytes, list[tuple[int, bytes]]] = {}
    for number, (name, value) in enumerate(fields):
        values.setdefault(name.lower(), []).append((number, value.strip(b" \t")))
    authorization = values.get(b"authorization", [])
    match = _AUTHORIZATION.fullmatch(authorization[0][1]) if len(authorization) == 1 else None
    if match is not None:
        ident, *scope, names, signed = match.groups()
        return _make_claim(
            (ident, *scope),
            names,
            signed,
            _only_value(values, _DATE_HEADER),
            authorization[0][0],
            values,
            {},
            keys_for_host,
        )
    query = _signature_parameters(path)
    if query is None or authorization:
        return None
    credential = _IN_QUERY.fullmatch(query.get(b"x-amz-credential", b""))
    names, signed = query.get(b"x-amz-signedheaders", b""), query.get(b"x-amz-signature", b"")
    plain = query.get(b"x-amz-algorithm") == ALGORITHM and _SIGNED.fullmatch(names) and _SIGNATURE.fullmatch(signed)
    if credential is None or not plain:
        return None
    return _make_claim(
        credential.groups(), names, signed, query.get(_DATE_HEADER), IN_QUERY, values, query, keys_for_host
    )


def _make_claim(  # noqa: PLR0917 - shared by header and query signatures
    credential: tuple[bytes, ...],
    names: bytes,
    signed: bytes,
    date: bytes | None,
    field: int,
    values: "Mapping[bytes, list[tuple[int, bytes]]]",
    query: "Mapping[bytes, bytes]",
    keys_for_host: "tuple[AwsKeys, ...]",
) -> SignatureClaim | None:
    keys = next((each for each in keys_for_host if each.ident.placeholder == credential[0]), None)
    if keys is None or date is None or not _DATE.fullmatch(date) or not date.startswith(credential[1]):
        return None
    scope, listed = Scope(*credential[1:]), tuple(names.split(b";"))
    sent_token = query.get(_TOKEN_HEADER) if field == IN_QUERY else _only_value(values, _TOKEN_HEADER)
    token = keys.token is not None and sent_token == keys.token.placeholder
    payload = _only_value(values, _HASH_HEADER)
    if payload is None and field == IN_QUERY and scope.service in _SERVICES_WITHOUT_BODY_HASH:
        payload = _UNSIGNED
    flaw = _find_flaw(listed, values, payload)
    return SignatureClaim(keys, scope, date, listed, signed, field, token, payload, flaw)


def _find_flaw(
    names: tuple[bytes, ...], values: "Mapping[bytes, list[tuple[int, bytes]]]", payload: bytes | None
) -> str:
    if payload is not None and payload not in _UNSIGNED_PAYLOADS and not _HASH.fullmatch(payload):
        return (
            "its body is signed piece by piece, which the gate doesn't do anew: have the client send the body's hash, "
            "or `UNSIGNED-PAYLOAD`"
        )
    if names != tuple(sorted(set(names))) or b"host" not in names:
        return "its signed fields are not in order, or `host` is not among them"
    for name in names:
        if name in _HOP_BY_HOP:
            return f"it signs `{name.decode()}`, which ends at the gate"
        if name != b"host" and name not in values:
            return f"it signs `{name.decode()[:64]}`, which it doesn't have"
    return ""


def _only_value(values: "Mapping[bytes, list[tuple[int, bytes]]]", name: bytes) -> bytes | None:
    found = values.get(name, [])
    return found[0][1] if len(found) == 1 else None


def _signature_parameters(path: bytes) -> "dict[bytes, bytes] | None":
    """Return the signature parameters of a query, by lower-case name; None: none, or ambiguous."""
    found: dict[bytes, bytes] = {}
    for part in path.partition(b"?")[2].split(b"&"):
        name, _, value = part.partition(b"=")
        lower = unquote_to_bytes(name).lower()
        if lower in _PARAMETERS:
            if lower in found or b"%" in name:
                return None
            found[lower] = unquote_to_bytes(value)
    return found or None


def strip_claim(claim: SignatureClaim, path: bytes, fields: "tuple[Field, ...]") -> "tuple[bytes, tuple[Field, ...]]":
    """Return path and fields without the parts of a claim, to read other credentials from them."""
    kept = tuple(
        (name, b"" if number == claim.field or (claim.token and _is_token(name, claim)) else value)
        for number, (name, value) in enumerate(fields)
    )
    if claim.field != IN_QUERY:
        return path, kept
    before, _, query = path.partition(b"?")
    dropped = _PARAMETERS if claim.token else _PARAMETERS - {_TOKEN_HEADER}
    parts = [part for part in query.split(b"&") if part.partition(b"=")[0].lower() not in dropped]
    return before + (b"?" + b"&".join(parts) if parts else b""), kept


def _is_token(name: bytes, claim: SignatureClaim) -> bool:
    return claim.field != IN_QUERY and name.lower() == _TOKEN_HEADER


class UnsignedRequest(NamedTuple):
    """Request to sign."""

    method: bytes
    authority: bytes  # as forwarded; a signature over another spelling doesn't match
    path: bytes
    fields: "tuple[Field, ...]"
    payload: bytes  # the body's hash, or a keyword such as `UNSIGNED-PAYLOAD`


def verify(claim: SignatureClaim, request: UnsignedRequest) -> int | None:
    """Return the index of the spelling that was signed; None: the signature wasn't made with the placeholder's key."""
    key = signing_key(claim.keys.key.placeholder, claim.scope)
    for number, (path, query) in enumerate(_request_spellings(claim, request)):
        if hmac.compare_digest(_signature(claim, request, key, path, query), claim.signature):
            return number
    return None


def sign(claim: SignatureClaim, request: UnsignedRequest, spelling: int) -> "tuple[bytes, tuple[Field, ...], bytes]":
    """Sign with the real keys; returns path, fields and signature. Only for the upstream connection."""
    keys, presigned = claim.keys, claim.field == IN_QUERY
    credential = keys.ident.value + b"/" + claim.scope.text
    path, fields = request.path, request.fields
    if claim.token and keys.token is not None:
        token = keys.token.value
        fields = tuple((name, token if _is_token(name, claim) else value) for name, value in fields)
    if presigned:
        replacements = {b"x-amz-credential": credential}
        if claim.token and keys.token is not None:
            replacements[_TOKEN_HEADER] = keys.token.value
        path = _replace_parameters(path, replacements)
    request = request._replace(path=path, fields=fields)
    key = signing_key(keys.key.value, claim.scope)
    signed = _signature(claim, request, key, *_request_spellings(claim, request)[spelling])
    if presigned:
        return _replace_parameters(path, {b"x-amz-signature": signed}), fields, signed
    authorization = b"%b Credential=%b, SignedHeaders=%b, Signature=%b" % (
        ALGORITHM, credential, b";".join(claim.names), signed,
    )  # fmt: skip
    fields = tuple((name, authorization if name.lower() == b"authorization" else value) for name, value in fields)
    return path, fields, signed


def _request_spellings(claim: SignatureClaim, request: UnsignedRequest) -> "tuple[tuple[bytes, bytes], ...]":
    path, _, query = request.path.partition(b"?")
    if claim.field == IN_QUERY:
        query = b"&".join(p for p in query.split(b"&") if p.partition(b"=")[0].lower() != b"x-amz-signature")
    return spellings(path, query)


def _signature(claim: SignatureClaim, request: UnsignedRequest, key: bytes, path: bytes, query: bytes) -> bytes:
    values: dict[bytes, list[bytes]] = {}
    for name, value in request.fields:
        values.setdefault(name.lower(), []).append(value)
    values[b"host"] = [request.authority]
    headers = [(name, values.get(name, [])) for name in claim.names]
    canonical = canonical_request(request.method, path, query, headers, request.payload)
    return signature(key, claim.scope, claim.date, canonical)


def _replace_parameters(path: bytes, values: "Mapping[bytes, bytes]") -> bytes:
    before, _, query = path.partition(b"?")
    parts = []
    for part in query.split(b"&"):
        name = part.partition(b"=")[0]
        value = values.get(name.lower())
        parts.append(part if value is None else name + b"=" + quote_from_bytes(value, safe="").encode())
    return before + b"?" + b"&".join(parts)
