"""Finds headers and parameters that override a request's method, path or host, and so hide it from rules.

Pure. Frameworks and proxies read many such names, so patterns match them instead of a list: a word for origin
(`original`, `forwarded`, `rewrite`, `override` ...) with a word for the part of the request (`method`, `url`, `path`,
`host` ...). `Access-Control-Request-Method` is no match.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

ALIKE: Final = bytes(byte if byte >= 0x80 or chr(byte).isalnum() else ord("-") for byte in range(256))


def alike(name: bytes) -> bytes:
    """Return a lower-case name with `-` for every sign. A server may treat names with equal results as one header.

    CGI has one variable for `X-Team` and `X_Team` (RFC 3875 section 4.1.18). Servers that write `_` for every sign
    (lighttpd) also use it for `X.Team` and `X!Team`.
    """
    return name.translate(ALIKE)


# Symfony, Rails, Express, Spring and ASP.NET (methods); IIS, Symfony and Zend (`X-Original-URL`, `X-Rewrite-URL`);
# nginx, Traefik, Envoy (`X-Original-URI`, `X-Forwarded-Uri`, `X-Envoy-Original-Path`); Azure (`X-WAWS-Unencoded-URL`)
_MOVED_WORD: Final = (
    rb"(?:forward(?:ed)?|matched|original|overrid(?:e|den)|overwrit(?:e|ten)|raw|replaced|rewrit(?:e|ten)|unencoded)-?"
)
_ORIGIN_WORD: Final = (
    rb"(?:actual|backend|base|decoded|dest(?:ination)?|effective|encoded|forward(?:ed)?|fwd|ingress|invoke"
    rb"|mapped|matched|modified|orig|original|overrid(?:e|den)|overwrit(?:e|ten)|raw|replaced|rerouted|rest"
    rb"|rewrit(?:e|ten)|target|true|tunnel(?:l?ed)?|unencoded|upstream|http|internal|proxy|real|request(?:ed)?)-?"
)
_TARGET_WORD: Final = (
    rb"(?:method|verb|ur[il]|path(?:-?(?:info|name))?|prefix|query(?:-?string)?|route|script-?name|target"
    rb"|destinationur[il])"
)
_OVERRIDE_NAMES: Final = re.compile(
    rb"(?:x-)?(?:%b)+%b(?:-override)?|(?:x-)?(?:[a-z]{1,16}-)?%b-?over(?:ride|write)|(?:x-)?ur[il]"
    rb"|x-(?:method|verb|path(?:-?(?:info|name))?|script-?name)"
    rb"|x-[a-z]{1,16}-http-(?:method|verb)(?:-override)?|x-[a-z]{1,16}-%b%b"
    % (_ORIGIN_WORD, _TARGET_WORD, _TARGET_WORD, _MOVED_WORD, _TARGET_WORD)
)
# Azure's front ends have `Disguised-Host`, `X-WAWS-Hostname` and `Was-Default-Hostname`, Envoy's original
# destination clusters `X-Envoy-Original-Dst-Host`
_HOST_WORD: Final = rb"(?:dst-?)?(?:authority|domain|host(?:-?name)?|server(?:-?name)?)"
_HOST_NAMES: Final = re.compile(
    rb"forwarded|(?:x-)?(?:%b)+%b(?:-override)?|x-[a-z]{1,16}-%b%b|x-(?:authority|host(?:-override)?|vhost)"
    rb"|(?:x-)?(?:disguised|gateway|origin|virtual|waws|was-default)-?host(?:-?name)?"
    % (_ORIGIN_WORD, _HOST_WORD, _MOVED_WORD, _HOST_WORD)
)
_PORT: Final = re.compile(rb":[0-9]{1,5}")
_FORWARDED: Final = re.compile(rb"(?:^|[;,])\s*host\s*=\s*\"?([^\";,]*)", re.IGNORECASE)  # RFC 7239 section 4
# Parameters: Symfony and Express (`_method`), Firebase (`x-http-method-override`), Google's APIs (`$httpMethod`,
# `$httpHeaders`: Closure Library, goog.net.rpc.HttpCors)
_METHOD_PARAMETERS: Final = re.compile(
    rb"(?:-{1,2}|x-)(?:(?:http|request)-?)?(?:method|verb)|-{0,2}(?:x-)?(?:http-?)?(?:method|verb)-?override"
    rb"|-{0,2}(?:http|request)-?method|-http-?headers"
)
_MAY_NAME_METHOD: Final = re.compile(rb"method|verb|http.?headers", re.DOTALL)
_BETWEEN_PARAMETERS: Final = re.compile(rb"[&;?]")
_ESCAPES: Final = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")
MOST_PARAMETERS: Final = 1000  # that are checked, as in rules
LONGEST_NAME: Final = 64  # bytes of a header's name: no pattern matches a longer one; bounds the caches below


def is_override(name: bytes) -> bool:
    """Whether some server takes a header (lower case) as another method or path."""
    return len(name) <= LONGEST_NAME and _is_override(name)


def names_host(name: bytes, value: bytes, host: bytes) -> bool:
    """Whether some server takes a header (lower case) as another host than `host` (lower case)."""
    if len(name) > LONGEST_NAME or not _may_name_host(name):
        return False
    found: Iterable[bytes] = _FORWARDED.findall(value) if name == b"forwarded" else value.split(b",")
    others = (each.strip().lower() for each in found)
    return any(
        each and each != host and not (each.startswith(host) and _PORT.fullmatch(each, len(host))) for each in others
    )


def names_method(path: bytes) -> bool:
    """Whether some server takes a query parameter as the method, in any spelling."""
    query = path.partition(b"?")[2]
    if not query or not _MAY_NAME_METHOD.search(_unquoted(_unquoted(query)).lower()):
        return False
    parts = _BETWEEN_PARAMETERS.split(query)
    if len(parts) > MOST_PARAMETERS:
        return True
    for part in parts:
        name = part.partition(b"=")[0]
        for _ in range(2):
            name = _unquoted(name.replace(b"+", b" "))
        # PHP has underscores for dots and spaces, and ends a name with a bracket or a zero
        name = re.split(rb"[\[\0]", name.strip().lower(), maxsplit=1)[0]
        if _METHOD_PARAMETERS.fullmatch(alike(name)):
            return True
    return False


def _unquoted(text: bytes) -> bytes:
    """Decode percent-encoding; faster than `unquote_to_bytes` on many stray percent signs."""
    return _ESCAPES.sub(lambda found: unquote_to_bytes(found[0]), text)


@lru_cache(512)
def may_override(name: bytes) -> bool:
    """Whether a header (normalised name) may name another method, path or host."""
    return _is_override(name) or _may_name_host(name)


@lru_cache(512)
def _is_override(name: bytes) -> bool:
    return _OVERRIDE_NAMES.fullmatch(alike(name)) is not None


@lru_cache(512)
def _may_name_host(name: bytes) -> bool:
    return _HOST_NAMES.fullmatch(alike(name)) is not None
