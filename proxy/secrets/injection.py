"""Injects the secrets of one task: what a request carries, and what is sent in its place.

For one thread. Which secrets there are never changes while a task runs; all that is remembered is cookies.
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
    from rules.addresses import Address
    from rules.names import HostName
    from rules.secrets import Secret, Slot


class CarriedSecrets(NamedTuple):
    """Secrets that a request carries. `misused`: the secret with a misplaced placeholder; `wrong`: why."""

    uses: tuple[SecretUse, ...] = ()
    credential: str = ""  # the id of its one credential, if that is a placeholder in its place
    misused: str = ""
    wrong: str = ""  # about it, or about what is withheld
    withheld: str = ""  # the secret whose placeholder is in its place, at a host that its `not_sent_to` lists
    signed: "SignedRequest | None" = None
    flaw: str = ""  # why what is signed can't be signed anew
    unread: bool = False  # its body has to be there first: its hash is signed, or it is a form that may have a secret
    may_carry: tuple[str, ...] = ()  # ... which would be the credential
    bare: bool = False  # it carries no credential at all, as far as its head says

    @property
    def secrets(self) -> tuple[str, ...]:
        """The ids of all whose values it leaves with, in order."""
        signing = () if self.signed is None else (self.signed.claim.keys.ident.secret.id,)
        return tuple(sorted({*(use.held.secret.id for use in self.uses), *signing}))


class SignedRequest(NamedTuple):
    """Request signed with placeholders, and the spelling that was signed."""

    claim: SignatureClaim
    authority: bytes
    payload: bytes
    spelling: int


class SecretInjector:
    """Injector of one task's secrets."""

    __slots__ = ("_all", "_bodies", "_cookies", "_echoes", "_identities", "_keys", "_spelled")

    def __init__(self, held: "Iterable[SecretValue | AwsKeys | Identity]") -> None:
        held = tuple(held)
        self._identities = tuple(each for each in held if isinstance(each, Identity))
        self._keys = tuple(each for each in held if isinstance(each, AwsKeys))
        sent = (each for each in held if not isinstance(each, Identity))
        self._all = tuple(one for each in sent for one in (each.each if isinstance(each, AwsKeys) else (each,)))
        self._spelled = tuple((each.secret.id, SpelledText(each.placeholder)) for each in self._all)
        self._bodies = tuple((each.secret.id, (each.placeholder, *encoded(each.placeholder))) for each in self._all)
        self._echoes = ResponseMasks(self._all)
        self._cookies = Cookies()

    def __repr__(self) -> str:
        """Show nothing."""
        return "SecretInjector(...)"

    def __reduce__(self) -> str:
        """Refuse to be pickled."""
        raise TypeError("secrets are not to be pickled")

    @property
    def placeholders(self) -> dict[str, str]:
        """What the task's environment has, by the variable."""
        return {each.variable: each.placeholder.decode() for each in self._all}

    @property
    def known(self) -> tuple[SecretToFind, ...]:
        """The values, as they are looked for where nobody should have them."""
        return tuple(
            SecretToFind(f"the value of the secret `{each.secret.id}`", each.value, each.public) for each in self._all
        )

    def at(self, target: "HostName | Address", port: int, *, tls: bool) -> "tuple[SecretValue, ...]":
        """Return the secrets that belong to a place."""
        return tuple(each for each in self._all if each.secret.may_be_sent_to(target, port, tls=tls))

    def identity(self, target: "HostName | Address", port: int) -> Identity | None:
        """Return the client certificate for a place that TLS is spoken with."""
        return next((each for each in self._identities if each.secret.may_be_sent_to(target, port, tls=True)), None)

    def read(
        self, head: "Head", target: "HostName | Address", port: int, *, tls: bool, content: bytes | None = None
    ) -> CarriedSecrets:
        """Say what a request to a place carries: `head` as it came; `content`: its body, where it is there."""
        here = self.at(target, port, tls=tls)
        withheld = tuple(each for each in self._all if each.secret.is_withheld(target, port, tls=tls))
        known = (*here, *withheld)
        keys = tuple(each for each in self._keys if each.ident in known)
        claim = find_claim(head.path, head.fields, keys) if keys else None
        path, fields = (head.path, head.fields) if claim is None else strip_claim(claim, head.path, head.fields)
        found = read(path, fields, known)
        forms = tuple(held for held in known if held.secret.fills_forms)
        if forms and not is_form(head.fields):
            forms = ()
        if forms and content is not None and len(content) <= LONGEST_FORM:
            uses, left = in_form(content, forms)
            found = found._replace(uses=(*found.uses, *uses), rest=(*found.rest, ("the body", left)))
        rest = (*found.rest, ("the method", head.method), ("the host", head.authority))
        if claim is not None:
            rest = (*rest, ("the signature", claim.said))
        together = ways(b"\n".join(text for _, text in rest))
        for ident, spelled in self._spelled:
            if spelled.is_in(together):
                where = next((name for name, text in rest if spelled.is_in(ways(text))), "its head")
                return CarriedSecrets(misused=ident, wrong=self.wrong(ident, where, target, port, tls=tls))
        signing = () if claim is None else (claim.keys.ident,)
        for held in (*signing, *(use.held for use in found.uses)):
            if held in withheld:
                return CarriedSecrets(withheld=held.secret.id, wrong=describe_not_sent(held.secret, target, port))
        if claim is not None:
            authority = forwarded(named(head), target, port, tls=tls)
            request = UnsignedRequest(head.method, authority, head.path, head.fields, b"")
            return _signed(claim, request, found, content, self._only(claim.keys.ident.secret.id, found))
        one = self._only(found.uses[0].held.secret.id, found) if len(found.uses) == 1 else ""
        if forms and content is None:
            return CarriedSecrets(found.uses, one, unread=True, may_carry=tuple(held.secret.id for held in forms))
        return CarriedSecrets(found.uses, one, bare=not (found.uses or found.others or any(found.cookies)))

    def wrong(self, ident: str, where: str, target: "HostName | Address", port: int, *, tls: bool) -> str:
        """Say what is wrong with the placeholder of a secret that a request to a place has in `where`."""
        secret = next(each.secret for each in self._all if each.secret.id == ident)
        return describe_misuse(secret, where, target, port, tls=tls)

    def _only(self, ident: str, found: "HeadCredentials") -> str:
        """Return the id of a secret that a request carries, if it carries no other credential."""
        return ident if not found.others and self._cookies.knows(ident, found.cookies) else ""

    def answered(self, ident: str, fields: "tuple[Field, ...]") -> None:
        """Take note of the head of an answer to a request whose one credential was a secret."""
        self._cookies.keep(ident, fields)

    @staticmethod
    def fill_in(head: "Head", carried: CarriedSecrets) -> "tuple[bytes, tuple[Field, ...]]":
        """Return a head's path and fields with the values in them: for the wire and for nobody else."""
        return insert_values(head.path, head.fields, carried.uses)

    @staticmethod
    def form(carried: CarriedSecrets) -> bytes | None:
        """Return the body with a value in it: for the wire and for nobody else. None: it goes as it is."""
        return next((use.text[1:] for use in carried.uses if use.field == IN_FORM), None)

    @staticmethod
    def sign(
        head: "Head", path: bytes, fields: "tuple[Field, ...]", signed: SignedRequest
    ) -> "tuple[bytes, tuple[Field, ...], bytes]":
        """Return the path, the fields and the signature of a request that leaves so, for the wire and nobody else."""
        request = UnsignedRequest(head.method, signed.authority, path, fields, signed.payload)
        return sign(signed.claim, request, signed.spelling)

    def is_placeholder(self, text: bytes) -> bool:
        """Whether what looks like a credential is one of ours, which is worth nothing."""
        return any(each.placeholder in text for each in self._all)

    def body(self) -> "Body":
        """Look through one request's body as it passes."""
        return Body(self._bodies)

    def mask(self, target: "HostName | Address", port: int, *, tls: bool) -> Mask | None:
        """Look through one response of a place; None: no secret belongs there."""
        here = self.at(target, port, tls=tls)
        return self._echoes.mask(here) if here else None

    def masked(self, text: str) -> str:
        """Return a text of ours without any value in it."""
        return self._echoes.text(text)


def _signed(
    claim: SignatureClaim, request: UnsignedRequest, found: "HeadCredentials", content: bytes | None, one: str
) -> CarriedSecrets:
    ident = claim.keys.ident.secret.id
    if claim.flaw:
        return CarriedSecrets(flaw=claim.flaw)
    if found.uses:  # two credentials, and what one of them says is signed by the other
        return CarriedSecrets(flaw="it is signed, and has the placeholder of another secret besides")
    payload = claim.payload or (None if content is None else hashlib.sha256(content).hexdigest().encode())
    if payload is None:
        return CarriedSecrets(credential=one, unread=True)
    spelling = verify(claim, request._replace(payload=payload))
    if spelling is None:
        wrong = f"the placeholder of `{ident}` is in a signature that isn't this request's, where it doesn't belong"
        return CarriedSecrets(misused=ident, wrong=wrong)
    return CarriedSecrets(credential=one, signed=SignedRequest(claim, request.authority, payload, spelling))


class Body:
    """One request's body: looked through as it passes, for placeholders as they are and in base64.

    What has passed can't be called back: of a placeholder that comes in pieces all but the last piece may have left.
    """

    __slots__ = ("_forms", "_longest", "_tail")

    def __init__(self, forms: tuple[tuple[str, tuple[bytes, ...]], ...]) -> None:
        self._forms = forms
        self._longest = max((len(form) for _, each in forms for form in each), default=1) - 1
        self._tail = b""

    def misused(self, data: bytes) -> str:
        """Take the next piece; returns the id of the secret whose placeholder is complete with it, or nothing."""
        text = self._tail + data
        for ident, forms in self._forms:
            if any(form in text for form in forms):
                return ident
        self._tail = text[-self._longest :]
        return ""


_MOST: Final = 256  # of a secret; browsers keep fewer of a site (RFC 6265 section 6.1: at least 50)
_LONGEST: Final = 4096  # bytes of one, as there


class Cookies:
    """Cookies from answers to requests whose only credential was an injected secret.

    Clients send back what a service or a balancer sets beside the key. A rule with `credential` would take each for a
    second credential. What was set in any other answer, or was never set, counts as one: it may be an attacker's
    session. Bounded; what falls out counts as one again.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, dict[bytes, None]] = {}  # by the secret's id; the oldest first

    def keep(self, ident: str, fields: "Iterable[Field]") -> None:
        """Take note of what an answer sets."""
        for name, value in fields:
            if name.lower() != b"set-cookie":
                continue
            pair = value.partition(b";")[0].strip()
            if b"=" in pair and len(pair) <= _LONGEST:
                known = self._known.setdefault(ident, {})
                known.pop(pair, None)
                known[pair] = None
                if len(known) > _MOST:
                    del known[next(iter(known))]

    def knows(self, ident: str, cookies: "Iterable[bytes]") -> bool:
        """Whether every cookie of these fields was set for a secret."""
        known = self._known.get(ident, {})
        pairs = (pair.strip() for value in cookies for pair in value.split(b";"))
        return all(pair in known for pair in pairs if pair)


_MOST_HOSTS: Final = 3  # hosts that are named
_HTTPS: Final = 443


def describe_misuse(secret: "Secret", where: str, target: "HostName | Address", port: int, *, tls: bool) -> str:
    """Return the sentence on the placeholder of `secret`, which a request to a place has in `where`."""
    which = f"the placeholder of `{secret.id}`"
    places = " or ".join(_place(slot) for slot in secret.slots)
    belongs = f"it belongs to {_hosts(secret)} over TLS, in {places}"
    if secret.may_be_sent_to(target, port, tls=tls):
        if where.lower() in {_place(slot).lower() for slot in secret.slots} or _is_authorization(secret, where):
            return f"{which} is in {where}, but not whole, plainly and once, as it has to be; it belongs in {places}"
        return f"{which} is in {where}, where it doesn't belong; it belongs in {places}"
    sent = f"{which} was sent to `{_spelled(target, port)}`"
    if not tls and any(host == target for host, _ in secret.hosts):
        return f"{sent} without TLS, in {where}, and TLS is what is missing: {belongs}"
    return f"{sent}, in {where}; {belongs}"


def describe_not_sent(secret: "Secret", target: "HostName | Address", port: int) -> str:
    """Return the sentence on a placeholder that a client has sent to a host that the secret's `not_sent_to` lists."""
    where = _spelled(target, port)
    return f"`{secret.id}` is not sent to `{where}`, which its `not_sent_to` lists; it belongs to {_hosts(secret)}"


def _is_authorization(secret: "Secret", where: str) -> bool:
    return where.lower() == "the header `authorization`" and any(slot.kind is SlotKind.BASIC for slot in secret.slots)


def _hosts(secret: "Secret") -> str:
    shown = ", ".join(f"`{_spelled(*host)}`" for host in secret.hosts[:_MOST_HOSTS])
    more = len(secret.hosts) - _MOST_HOSTS
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
