"""Injects the secrets of one task: finds placeholders in a request, and replaces them by the real values.

For one thread. The set of secrets never changes while a task runs; the only state is cookies.
"""

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.request.request_head import forwarded, named
from proxy.secrets.aws_signing import SignatureClaim, UnsignedRequest, find_claim, sign, strip_claim, verify
from proxy.secrets.credentials import IN_FORM, LONGEST_FORM, SecretUse, in_form, insert_values, is_form, read
from proxy.secrets.detection import SecretToFind
from proxy.secrets.encodings import SpelledText, encoded, ways
from proxy.secrets.response_masking import Mask, ResponseMasks
from proxy.secrets.values import AwsKeys, Identity
from rules.secrets import SlotKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.request.request_head import Field, Head
    from proxy.secrets.credentials import HeadCredentials
    from proxy.secrets.values import SecretValue
    from rules.secrets import Secret, Slot
    from rules.values.addresses import Address
    from rules.values.names import HostName


class CarriedSecrets(NamedTuple):
    """Secrets that a request carries. `misused`: the secret with a misplaced placeholder; `wrong`: why."""

    uses: tuple[SecretUse, ...] = ()
    credential: str = ""  # the id of its one credential, if that is a placeholder in its place
    misused: str = ""
    wrong: str = ""  # why a placeholder is misused or withheld
    withheld: str = ""  # the secret whose placeholder was sent to a host that its `not_sent_to` lists
    signed: "SignedRequest | None" = None
    flaw: str = ""  # why the gate can't sign the request anew
    unread: bool = False  # needs the complete body first: to sign its hash, or to search a form for secrets
    may_carry: tuple[str, ...] = ()  # secrets that the form may have
    bare: bool = False  # its head has no credential at all

    @property
    def secrets(self) -> tuple[str, ...]:
        """Sorted ids of the secrets whose values are sent with it."""
        signing = () if self.signed is None else (self.signed.claim.keys.ident.secret.id,)
        return tuple(sorted({*(use.secret_value.secret.id for use in self.uses), *signing}))


class SignedRequest(NamedTuple):
    """Request that was signed with placeholders, and the spelling that was signed."""

    claim: SignatureClaim
    authority: bytes
    payload: bytes
    spelling: int


class SecretInjector:
    """Injector of one task's secrets."""

    __slots__ = (
        "_body_forms",
        "_cookies",
        "_identities",
        "_keys",
        "_placeholder_forms",
        "_response_masks",
        "_secret_values",
    )

    def __init__(self, secret_value: "Iterable[SecretValue | AwsKeys | Identity]") -> None:
        secret_value = tuple(secret_value)
        self._identities = tuple(each for each in secret_value if isinstance(each, Identity))
        self._keys = tuple(each for each in secret_value if isinstance(each, AwsKeys))
        sent = (each for each in secret_value if not isinstance(each, Identity))
        self._secret_values = tuple(
            credential for each in sent for credential in (each.each if isinstance(each, AwsKeys) else (each,))
        )
        self._placeholder_forms = tuple((each.secret.id, SpelledText(each.placeholder)) for each in self._secret_values)
        self._body_forms = tuple(
            (each.secret.id, (each.placeholder, *encoded(each.placeholder))) for each in self._secret_values
        )
        self._response_masks = ResponseMasks(self._secret_values)
        self._cookies = Cookies()

    def __repr__(self) -> str:
        """Show nothing."""
        return "SecretInjector(...)"

    def __reduce__(self) -> str:
        """Refuse to be pickled."""
        raise TypeError("secrets are not to be pickled")

    @property
    def placeholders(self) -> dict[str, str]:
        """Placeholders by environment variable of the task."""
        return {each.variable: each.placeholder.decode() for each in self._secret_values}

    @property
    def values_to_find(self) -> tuple[SecretToFind, ...]:
        """The real values, for the search of outgoing data."""
        return tuple(
            SecretToFind(f"the value of the secret `{each.secret.id}`", each.value, each.public)
            for each in self._secret_values
        )

    def at(self, target: "HostName | Address", port: int, *, tls: bool) -> "tuple[SecretValue, ...]":
        """Return the secrets that may be sent to a destination."""
        return tuple(each for each in self._secret_values if each.secret.may_be_sent_to(target, port, tls=tls))

    def identity(self, target: "HostName | Address", port: int) -> Identity | None:
        """Return the client certificate for a TLS destination."""
        return next((each for each in self._identities if each.secret.may_be_sent_to(target, port, tls=True)), None)

    def read(
        self, head: "Head", target: "HostName | Address", port: int, *, tls: bool, content: bytes | None = None
    ) -> CarriedSecrets:
        """Find the secrets that a request carries. `head` is as received; `content`: the body, if it is complete."""
        secret_values = self.at(target, port, tls=tls)
        withheld = tuple(each for each in self._secret_values if each.secret.is_withheld(target, port, tls=tls))
        sendable = (*secret_values, *withheld)
        keys = tuple(each for each in self._keys if each.ident in sendable)
        claim = find_claim(head.path, head.fields, keys) if keys else None
        path, fields = (head.path, head.fields) if claim is None else strip_claim(claim, head.path, head.fields)
        found = read(path, fields, sendable)
        forms = tuple(secret_value for secret_value in sendable if secret_value.secret.fills_forms)
        if forms and not is_form(head.fields):
            forms = ()
        if forms and content is not None and len(content) <= LONGEST_FORM:
            uses, left = in_form(content, forms)
            found = found._replace(
                uses=(*found.uses, *uses), remaining_texts=(*found.remaining_texts, ("the body", left))
            )
        texts = (*found.remaining_texts, ("the method", head.method), ("the host", head.authority))
        if claim is not None:
            texts = (*texts, ("the signature", claim.task_text))
        readings = ways(b"\n".join(text for _, text in texts))
        for ident, spelled in self._placeholder_forms:
            if spelled.is_in(readings):
                where = next((name for name, text in texts if spelled.is_in(ways(text))), "its head")
                return CarriedSecrets(misused=ident, wrong=self.wrong(ident, where, target, port, tls=tls))
        signing = () if claim is None else (claim.keys.ident,)
        for secret_value in (*signing, *(use.secret_value for use in found.uses)):
            if secret_value in withheld:
                return CarriedSecrets(
                    withheld=secret_value.secret.id, wrong=describe_not_sent(secret_value.secret, target, port)
                )
        if claim is not None:
            authority = forwarded(named(head), target, port, tls=tls)
            request = UnsignedRequest(head.method, authority, head.path, head.fields, b"")
            return _read_signed(
                claim, request, found, content, self._sole_credential(claim.keys.ident.secret.id, found)
            )
        credential = self._sole_credential(found.uses[0].secret_value.secret.id, found) if len(found.uses) == 1 else ""
        if forms and content is None:
            return CarriedSecrets(
                found.uses, credential, unread=True, may_carry=tuple(secret_value.secret.id for secret_value in forms)
            )
        return CarriedSecrets(found.uses, credential, bare=not (found.uses or found.has_others or any(found.cookies)))

    def wrong(self, ident: str, where: str, target: "HostName | Address", port: int, *, tls: bool) -> str:
        """Describe the misuse of a secret's placeholder that a request has in `where`."""
        secret = next(each.secret for each in self._secret_values if each.secret.id == ident)
        return describe_misuse(secret, where, target, port, tls=tls)

    def _sole_credential(self, ident: str, found: "HeadCredentials") -> str:
        """Return the id of a secret if the request carries no other credential, else nothing."""
        return ident if not found.has_others and self._cookies.knows(ident, found.cookies) else ""

    def answered(self, ident: str, fields: "tuple[Field, ...]") -> None:
        """Store the cookies of a response to a request whose only credential was a secret."""
        self._cookies.keep(ident, fields)

    @staticmethod
    def fill_in(head: "Head", carried: CarriedSecrets) -> "tuple[bytes, tuple[Field, ...]]":
        """Return a head's path and fields with the real values: only for the upstream connection."""
        return insert_values(head.path, head.fields, carried.uses)

    @staticmethod
    def form(carried: CarriedSecrets) -> bytes | None:
        """Return the body with the real value: only for the upstream connection. None: send it unchanged."""
        return next((use.text[1:] for use in carried.uses if use.field == IN_FORM), None)

    @staticmethod
    def sign(
        head: "Head", path: bytes, fields: "tuple[Field, ...]", signed: SignedRequest
    ) -> "tuple[bytes, tuple[Field, ...], bytes]":
        """Sign with the real keys; returns path, fields and signature: only for the upstream connection."""
        request = UnsignedRequest(head.method, signed.authority, path, fields, signed.payload)
        return sign(signed.claim, request, signed.spelling)

    def is_placeholder(self, text: bytes) -> bool:
        """Whether a text that looks like a credential has a placeholder, which is harmless."""
        return any(each.placeholder in text for each in self._secret_values)

    def body(self) -> "Body":
        """Return the search for placeholders in one request's body."""
        return Body(self._body_forms)

    def mask(self, target: "HostName | Address", port: int, *, tls: bool) -> Mask | None:
        """Return the mask for a response of a destination; None: no secret may be sent there."""
        secret_values = self.at(target, port, tls=tls)
        return self._response_masks.mask(secret_values) if secret_values else None

    def masked(self, text: str) -> str:
        """Return a text with all real values masked."""
        return self._response_masks.text(text)


def _read_signed(
    claim: SignatureClaim, request: UnsignedRequest, found: "HeadCredentials", content: bytes | None, credential: str
) -> CarriedSecrets:
    ident = claim.keys.ident.secret.id
    if claim.flaw:
        return CarriedSecrets(flaw=claim.flaw)
    if found.uses:  # two credentials, one of which signs the other
        return CarriedSecrets(flaw="it is signed, and has the placeholder of another secret besides")
    payload = claim.payload or (None if content is None else hashlib.sha256(content).hexdigest().encode())
    if payload is None:
        return CarriedSecrets(credential=credential, unread=True)
    spelling = verify(claim, request._replace(payload=payload))
    if spelling is None:
        wrong = f"the placeholder of `{ident}` is in a signature that isn't this request's, where it doesn't belong"
        return CarriedSecrets(misused=ident, wrong=wrong)
    return CarriedSecrets(credential=credential, signed=SignedRequest(claim, request.authority, payload, spelling))


class Body:
    """Searches one request's body while it is forwarded, for placeholders as they are and in base64.

    If a placeholder arrives in pieces, all but its last piece may have been sent already.
    """

    __slots__ = ("_forms", "_longest", "_tail")

    def __init__(self, forms: tuple[tuple[str, tuple[bytes, ...]], ...]) -> None:
        self._forms = forms
        self._longest = max((len(form) for _, each in forms for form in each), default=1) - 1
        self._tail = b""

    def misused(self, data: bytes) -> str:
        """Search the next piece; returns the id of the secret whose placeholder it completes, or nothing."""
        text = self._tail + data
        for ident, forms in self._forms:
            if any(form in text for form in forms):
                return ident
        self._tail = text[-self._longest :]
        return ""


_MOST_COOKIES: Final = 256  # cookies of a secret; browsers keep fewer for a site (RFC 6265 section 6.1: at least 50)
_LONGEST_COOKIE: Final = 4096  # bytes of one, as there


class Cookies:
    """Cookies from responses to requests whose only credential was an injected secret.

    Clients send back cookies that a service or load balancer sets. A rule with `credential` must not count these as
    a second credential. All other cookies count as one: they may belong to an attacker's session. The store is bounded;
    a cookie that falls out counts as a credential again.
    """

    __slots__ = ("_cookies_by_secret",)

    def __init__(self) -> None:
        self._cookies_by_secret: dict[str, dict[bytes, None]] = {}  # by secret id; oldest first

    def keep(self, ident: str, fields: "Iterable[Field]") -> None:
        """Store the cookies that a response sets."""
        for name, value in fields:
            if name.lower() != b"set-cookie":
                continue
            pair = value.partition(b";")[0].strip()
            if b"=" in pair and len(pair) <= _LONGEST_COOKIE:
                secret_cookies = self._cookies_by_secret.setdefault(ident, {})
                secret_cookies.pop(pair, None)
                secret_cookies[pair] = None
                if len(secret_cookies) > _MOST_COOKIES:
                    del secret_cookies[next(iter(secret_cookies))]

    def knows(self, ident: str, cookies: "Iterable[bytes]") -> bool:
        """Whether every cookie of these Cookie values was set by responses for a secret."""
        secret_cookies = self._cookies_by_secret.get(ident, {})
        pairs = (pair.strip() for value in cookies for pair in value.split(b";"))
        return all(pair in secret_cookies for pair in pairs if pair)


_MOST_HOSTS: Final = 3  # hosts that a message lists
_HTTPS: Final = 443


def describe_misuse(secret: "Secret", where: str, target: "HostName | Address", port: int, *, tls: bool) -> str:
    """Describe the misuse of a placeholder that a request has in `where`."""
    which = f"the placeholder of `{secret.id}`"
    places = " or ".join(_place(slot) for slot in secret.slots)
    belongs = f"send it only to {_hosts(secret)} over TLS, in {places}"
    if secret.may_be_sent_to(target, port, tls=tls):
        if where.lower() in {_place(slot).lower() for slot in secret.slots} or _is_authorization(secret, where):
            return f"{which} is in {where}, but must be there complete, unencoded and once; it belongs in {places}"
        return f"{which} is in {where}, where it doesn't belong; it belongs in {places}"
    sent = f"{which} was sent to `{_authority(target, port)}`"
    if not tls and any(host == target for host, _ in secret.hosts):
        return f"{sent} without TLS, in {where}: {belongs}"
    return f"{sent}, in {where}; {belongs}"


def describe_not_sent(secret: "Secret", target: "HostName | Address", port: int) -> str:
    """Describe why a secret isn't sent to a host that its `not_sent_to` lists."""
    where = _authority(target, port)
    return f"`{secret.id}` is not sent to `{where}`, which its `not_sent_to` lists; it belongs to {_hosts(secret)}"


def _is_authorization(secret: "Secret", where: str) -> bool:
    return where.lower() == "the header `authorization`" and any(slot.kind is SlotKind.BASIC for slot in secret.slots)


def _hosts(secret: "Secret") -> str:
    shown = ", ".join(f"`{_authority(*host)}`" for host in secret.hosts[:_MOST_HOSTS])
    more = len(secret.hosts) - _MOST_HOSTS
    return f"{shown} and {more} more" if more > 0 else shown


def _authority(host: "HostName | Address", port: int) -> str:
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
        SlotKind.AWS: "the key of an AWS signature",
    }[slot.kind]
