"""Patterns of credentials that services issue, and the search for them in a text.

A pattern begins with a literal `prefix`. One pass searches for each prefix's rarest character, and matches the rest of
the pattern only there. No pattern has nested quantifiers, all are bounded, and patterns with common prefixes must start
a word: so no text makes the search slow. Minimum entropy excludes examples from documentation (`ghp_xxxx`).
"""

import binascii
import re
from math import log2
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from proxy.secrets.credentials import is_key_parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Pattern(NamedTuple):
    """One kind of credential."""

    name: str
    prefixes: tuple[bytes, ...]
    rest: bytes  # an expression for what follows the prefix
    entropy: float = 3.0  # minimum bits a character after the prefix
    word: bool = False  # whether it must start a word
    check: "Callable[[bytes], bool] | None" = None  # further condition on the whole match
    not_in_urls: bool = False  # its service uses it in URL paths

    @property
    def ends(self) -> bool:
        """Whether a match depends on the text after it: no character that could be part of it may follow."""
        return b"(?!" in self.rest


def entropy(text: bytes) -> float:
    """Return Shannon's entropy in bits a character."""
    if not text:
        return 0.0
    repeated = [count for byte in set(text) if (count := text.count(byte)) > 1]
    return log2(len(text)) - sum([count * log2(count) for count in repeated]) / len(text)


def _is_no_example(text: bytes) -> bool:
    return not text.endswith(b"EXAMPLE")  # AWS's documentation marks its examples so


def _is_mixed(text: bytes) -> bool:
    """Whether a key has digits and letters, as random keys do, and few dashes, which words have."""
    return any(byte in b"0123456789" for byte in text) and text.count(b"-") <= len(text) // 8


def _has_digits(text: bytes) -> bool:
    return sum(byte in b"0123456789" for byte in text) >= 6


def _is_jwt(text: bytes) -> bool:
    head = text.partition(b".")[0]
    try:
        header = binascii.a2b_base64(head.translate(bytes.maketrans(b"-_", b"+/")) + b"==")
    except ValueError:
        return False
    return b'"alg"' in header and b'"none"' not in header.lower()


_PLACEHOLDERS: Final = re.compile(
    rb"[<$%{*]|^(?:your|my|the|some|change|example|dummy|password|passwd|secret|x+$)", re.IGNORECASE
)


def _is_login(text: bytes) -> bool:
    """Whether a URL has a real password: not a variable, a word for one, or the user name again."""
    user, _, password = text.rpartition(b"@")[0].rpartition(b"//")[2].partition(b":")
    return user != password and _PLACEHOLDERS.search(password) is None and entropy(password) >= 2.5


_B62: Final = rb"[0-9A-Za-z]"
_B64U: Final = rb"[0-9A-Za-z_-]"
_HEX: Final = rb"[0-9a-f]"
_PEM: Final = rb"[A-Z0-9 ]{0,24}PRIVATE KEY[A-Z ]{0,8}-----[\s\\nr]{0,8}[0-9A-Za-z+/=:, \\\r\n-]{64}"


def _row(name: str, prefixes: bytes, rest: bytes, entropy: float = 3.0, **more: Any) -> Pattern:
    return Pattern(name, tuple(prefixes.split()), rest, entropy, **more)


# The services document these forms, unless a comment names another source
PATTERNS: Final = (
    # RFC 7468, RFC 4880
    Pattern("private-key", (b"-----BEGIN ",), _PEM, 3.5),
    _row("github-token", b"ghp_ gho_ ghu_ ghs_ ghr_", _B62 + rb"{36}", 3.5),
    _row("github-fine-grained-token", b"github_pat_", rb"\w{82}", 3.5),
    _row("gitlab-token", b"glpat- gldt- glrt- glcbt- glptt- glft- glsoat- glagent-", _B64U + rb"{20}", 3.2),
    _row("aws-access-key-id", b"AKIA ASIA", rb"[A-Z2-7]{16}(?![0-9A-Za-z_-])", 2.8, word=True, check=_is_no_example),
    _row(
        "aws-secret-access-key",
        b"SECRET_ACCESS_KEY secret_access_key SecretAccessKey secretAccessKey",
        rb"""[\\"' \t:=]{1,12}[0-9A-Za-z+/]{40}(?![0-9A-Za-z+/])""",
        4.0,
    ),
    _row("slack-token", b"xoxb- xoxp- xoxa- xoxe- xoxr- xoxs- xapp-", rb"[0-9A-Za-z-]{24}", 2.8, check=_has_digits),
    _row("slack-webhook", b"hooks.slack.com/services/", rb"T[0-9A-Z]{8,12}/B[0-9A-Z]{8,12}/[0-9A-Za-z]{24}", 3.5),
    _row("stripe-key", b"sk_live_ rk_live_ sk_test_ rk_test_", _B62 + rb"{24}", 3.2),
    _row("webhook-secret", b"whsec_", rb"[0-9A-Za-z+/]{32}", 3.2),
    _row("anthropic-key", b"sk-ant-", rb"[a-z]{3,8}[0-9]{2}-" + _B64U + rb"{64}", 3.8),
    _row("openai-key", b"sk-proj- sk-svcacct- sk-admin-", _B64U + rb"{40}", 3.8),
    _row("openrouter-key", b"sk-or-v1-", _HEX + rb"{64}"),
    # services with OpenAI's protocol
    _row("sk-key", b"sk-", _B62 + rb"{32}", 3.2, word=True, check=_is_mixed),
    _row("google-api-key", b"AIza", _B64U + rb"{35}", 3.5, word=True),
    _row("google-oauth-token", b"ya29.", _B64U + rb"{40}", 3.8),
    _row("google-client-secret", b"GOCSPX-", _B64U + rb"{28}", 3.2),
    _row("huggingface-token", b"hf_ api_org_", rb"[A-Za-z]{34}", 3.5),
    _row("npm-token", b"npm_", _B62 + rb"{36}", 3.5),
    _row("pypi-token", b"pypi-AgE", _B64U + rb"{60}", 3.8),
    _row("rubygems-key", b"rubygems_", _HEX + rb"{48}"),
    _row("docker-token", b"dckr_pat_ dckr_oat_", _B64U + rb"{27}", 3.2),
    _row("digitalocean-token", b"dop_v1_ doo_v1_ dor_v1_", _HEX + rb"{64}"),
    _row("shopify-token", b"shpat_ shpca_ shppa_ shpss_", rb"[0-9a-fA-F]{32}"),
    _row("sendgrid-key", b"SG.", _B64U + rb"{22}\." + _B64U + rb"{43}", 3.8),
    _row("telegram-bot-token", b":AA", _B64U + rb"{33}(?!" + _B64U + rb")", 3.5, not_in_urls=True),
    _row("azure-storage-key", b"AccountKey=", rb"[0-9A-Za-z+/]{86}==", 4.0),
    _row("azure-client-secret", b"8Q~", rb"[0-9A-Za-z_~.-]{34}(?![0-9A-Za-z_~.-])", 3.5),
    _row("vault-token", b"hvs. hvb.", _B64U + rb"{60}", 3.5),
    _row("grafana-token", b"glsa_", _B62 + rb"{32}_[0-9A-Fa-f]{8}", 3.2),
    _row("linear-key", b"lin_api_", _B62 + rb"{40}", 3.5),
    _row("notion-token", b"ntn_ secret_", _B62 + rb"{43}", 3.5),
    _row("postman-key", b"PMAK-", _HEX + rb"{24}-" + _HEX + rb"{34}"),
    _row("perplexity-key", b"pplx-", _B62 + rb"{48}", 3.5),
    _row("groq-key", b"gsk_", _B62 + rb"{52}", 3.8),
    _row("xai-key", b"xai-", _B62 + rb"{80}", 4.0),
    _row("replicate-token", b"r8_", _B62 + rb"{37}", 3.5),
    _row("supabase-token", b"sbp_", _HEX + rb"{40}"),
    _row("sentry-token", b"sntryu_", _HEX + rb"{64}"),
    _row("newrelic-key", b"NRAK-", rb"[0-9A-Z]{27}"),
    _row("heroku-key", b"HRKU-", _B64U + rb"{36}", 3.2),
    _row("tailscale-key", b"tskey-", rb"[a-z]{3,10}-[0-9A-Za-z-]{28}", 3.2),
    _row("terraform-token", b".atlasv1.", _B64U + rb"{60}", 3.8),
    # age's specification: Bech32
    _row("age-key", b"AGE-SECRET-KEY-1", rb"[02-9AC-HJ-NP-Z]{58}", 3.5),
    # RFC 7519
    _row(
        "jwt",
        b"eyJ",
        rb"[0-9A-Za-z_-]{12,512}\.eyJ[0-9A-Za-z_-]{8,4096}\.[0-9A-Za-z_-]{32}",
        4.0,
        word=True,
        check=_is_jwt,
    ),
    # RFC 3986 section 3.2.1
    _row(
        "url-password", b"://", rb"[^\s:@/?#\"'<>\\]{1,64}:[^\s:@/?#\"'<>\\]{6,128}@[0-9A-Za-z\[]", 0.0, check=_is_login
    ),
)


def compiled(pattern: Pattern) -> re.Pattern[bytes]:
    """Return the expression to match after the prefix."""
    return re.compile(pattern.rest)


def word(text: bytes) -> bytes:
    """Return an expression that matches after `text`, an expression of fixed length, if `text` starts a word.

    A word doesn't start after a token character, unless that ends a JSON escape such as a line break.
    """
    return rb"(?:(?<![0-9A-Za-z_-]%b)|(?<=\\[nrtbf]%b)|(?<=\\u00[0-9a-fA-F]{2}%b))" % (text, text, text)


BEGINS_WORD: Final = re.compile(word(b""))


LONGEST: Final = 5120  # bytes of the longest match of any pattern
BACK: Final = 192  # bytes before a match that are checked, for a parameter's name and the start of a word
_TRIED_AT_ONCE: Final = 64  # false matches checked in one slice: some 10 us each
_WINDOW: Final = 32 << 10  # bytes searched at a time: at most 4 ms
_LONGEST_NAME: Final = 64
_RARE: Final = b"~_QZXJKVWYHUGBFDOLMRINPCSATExzqkjvbwy98764325-.:/ "  # by frequency in requests, rarest first


class PatternMatch(NamedTuple):
    """Match of a credential pattern: its kind, and its place in the text."""

    name: str
    start: int
    end: int
    open: bool = False  # ends with the text, so that the next bytes may rule it out


class _PrefixPattern(NamedTuple):
    """Prefix and the pattern after it. `offset`: position of the prefix's rarest character."""

    prefix: bytes
    offset: int
    pattern: Pattern
    rest: re.Pattern[bytes]


def _rarest_offset(prefix: bytes) -> int:
    ranks = [(_RARE.find(byte) if byte in _RARE else len(_RARE), at) for at, byte in enumerate(prefix)]
    return min(ranks)[1]


def _index_prefixes() -> dict[int, tuple[_PrefixPattern, ...]]:
    found: dict[int, list[_PrefixPattern]] = {}
    for pattern in PATTERNS:
        for prefix in pattern.prefixes:
            offset = _rarest_offset(prefix)
            found.setdefault(prefix[offset], []).append(_PrefixPattern(prefix, offset, pattern, compiled(pattern)))
    return {byte: tuple(entries) for byte, entries in found.items()}


def _anchors(begun: dict[int, tuple[_PrefixPattern, ...]]) -> re.Pattern[bytes]:
    """Return the expression for the one pass. Each branch begins with a literal character, which makes it fast.

    Each branch also looks ahead for the rest of the pattern, so that prefixes alone cost no step of the interpreter.
    """
    branches = []
    for byte, entries in begun.items():
        ways: dict[tuple[bytes, bool], set[bytes]] = {}  # (rest, word) to prefixes
        for prefix, offset, pattern, _ in entries:
            follows = re.escape(prefix[offset + 1 :]) + pattern.rest, pattern.word
            ways.setdefault(follows, set()).add(re.escape(prefix[: offset + 1]))
        either = []
        for (after, begins_word), befores in sorted(ways.items()):
            sizes: dict[int, list[bytes]] = {}
            for before in sorted(befores):
                sizes.setdefault(len(before.replace(b"\\", b"")), []).append(before)
            for same in (b"|".join(sizes[size]) for size in sorted(sizes)):
                begun_word = word(b"(?:" + same + b")") if begins_word else b""
                either.append(b"(?<=" + same + b")" + begun_word + b"(?=" + after + b")")
        branches.append(re.escape(bytes([byte])) + b"(?:" + b"|".join(either) + b")")
    return re.compile(b"|".join(branches))


_BEGUN: Final = _index_prefixes()
ANCHORS: Final = _anchors(_BEGUN)  # without a match of it, no pattern matches


def find_credentials(text: bytes, *, parameters: bool = False, url: bool = False) -> "Iterator[PatternMatch]":
    """Yield the credentials in `text`.

    `parameters`: skip values of parameters that hold credentials by name. `url`: the text is a request's URL.
    """
    return (hit for hit in candidates(text, parameters=parameters, url=url) if hit is not None)


def _anchor_positions(text: bytes) -> "Iterator[int | None]":
    """Yield the positions where a pattern may match, and None after each part of the work."""
    for begin in range(0, len(text), _WINDOW):
        for tried, anchor in enumerate(ANCHORS.finditer(text, begin, begin + _WINDOW + LONGEST), 1):
            if anchor.start() >= begin + _WINDOW:
                break
            yield anchor.start()
            if not tried % _TRIED_AT_ONCE:
                yield None
        yield None


def candidates(text: bytes, *, parameters: bool = False, url: bool = False) -> "Iterator[PatternMatch | None]":
    """Yield matches, and None after each part of the work, where the caller may yield to other work."""
    for at in _anchor_positions(text):
        if at is None:
            yield None
            continue
        for prefix, offset, pattern, rest in _BEGUN[text[at]]:
            start = at - offset
            if start < 0 or not text.startswith(prefix, start):
                continue
            if pattern.word and BEGINS_WORD.match(text, start) is None:
                continue
            if url and pattern.not_in_urls:
                continue
            found = rest.match(text, start + len(prefix))
            if found is None or entropy(found[0]) < pattern.entropy:
                continue
            if pattern.check is not None and not pattern.check(text[start : found.end()]):
                continue
            if not (parameters and _is_parameter_value(text, start)):
                yield PatternMatch(pattern.name, start, found.end(), pattern.ends and found.end() == len(text))


def _is_parameter_value(text: bytes, start: int) -> bool:
    """Whether the match is the value of a parameter that holds credentials by name, which is normal use."""
    before = text[max(start - BACK, 0) : start]
    name, equals, _ = before[max(before.rfind(b"?"), before.rfind(b"&")) + 1 :].partition(b"=")
    if not equals or len(name) > _LONGEST_NAME or b"\n" in name:
        return False
    return is_key_parameter(unquote_to_bytes(name).lower())
