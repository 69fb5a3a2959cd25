"""Argument vectors without their credentials (invariant 8): what looks like a secret is shown as `***`.

A net with holes, as every such list is: it keeps the usual ways of passing a secret on a command line out of the
journal, and is no reason to pass one.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from proxy.telemetry.events import MASK
from proxy.telemetry.pieces import cut, cut_list

if TYPE_CHECKING:
    from collections.abc import Sequence

# Quantifiers are possessive, groups atomic, and words begun at their start: no argument can make them backtrack.
_START = r"(?<![\w.-])"
_SECRET = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credential|auth(?!or)"
    r"|(?:api|access|private|account|signing)[-_.]?key)"
)
_FLAG = re.compile(rf"--?(?>[\w.-]*?{_SECRET}[\w.-]*+)", re.IGNORECASE)  # --db-password X
_HEADER = re.compile(
    rf"({_START}(?:(?:proxy-)?authorization|(?:set-)?cookie|x-(?>[\w-]*?{_SECRET}[\w-]*+))\s*+:\s*+)[^\"'\r\n]++",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(  # GITHUB_TOKEN=X, {"api_key": "X"}, password: X
    rf"({_START}(?>[\w.-]*?{_SECRET}[\w.-]*+)[\"']?\s*+[=:]\s*+)(?:\"[^\"]*+\"?|'[^']*+'?|[^\s,;&\"']++)", re.IGNORECASE
)
_SCHEME = re.compile(r"\b((?:bearer|basic)\s++)[\w.~+/=-]{8,}+", re.IGNORECASE)
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]{0,31}+://)[^/?#\s@]++@", re.IGNORECASE)  # RFC 3986 section 3.2.1
_USER_FLAG = re.compile(r"(-u|--user|--proxy-user|-U)(=?)([^:]*+):.++", re.DOTALL)  # curl -u name:secret
_KNOWN = re.compile(  # what the services themselves made recognisable
    r"\b(?:gh[oprsu]_\w{16,}+|github_pat_\w{16,}+|glpat-[\w-]{16,}+|sk-[\w-]{16,}+|xox[a-z]-[\w-]{10,}+|hf_\w{16,}+"
    r"|npm_\w{16,}+|pypi-[\w-]{16,}+|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{30,}+)"
    # A JWT, RFC 7519. Looked for once a word: each try reads the word to its end.
    r"|(?<![\w-])(?>[\w-]*?\beyJ)[\w-]{10,}+\.[\w-]{10,}+\.[\w-]*+"
)
_PEM = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*", re.DOTALL)

_USER_FLAGS = frozenset({"-u", "-U", "--user", "--proxy-user"})


def masked(argv: "Sequence[str]") -> tuple[str, ...]:
    """Return arguments with what looks like a credential replaced, and what is too long or too many cut.

    What is masked already stays as it is.
    """
    # Cut first: a task chooses its arguments, and must not choose how long the gate looks at them.
    return _masked(tuple(map(cut, cut_list(argv))))


@lru_cache(maxsize=256)  # a process that opens one connection opens more
def _masked(argv: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_masked_after(before, argument) for before, argument in zip(("", *argv), argv, strict=False))


def _masked_after(flag: str, argument: str) -> str:
    """Return one argument, knowing the one in front of it."""
    if _FLAG.fullmatch(flag) and not argument.startswith("-"):
        return MASK
    if flag in _USER_FLAGS:
        name, colon, _ = argument.partition(":")
        return f"{name}:{MASK}" if colon and "/" not in name else _masked_text(argument)
    if match := _USER_FLAG.fullmatch(argument):
        return f"{match[1]}{match[2]}{match[3]}:{MASK}"
    return _masked_text(argument)


def _masked_text(text: str) -> str:
    text = _PEM.sub(rf"\1{MASK}", text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    text = _USERINFO.sub(rf"\1{MASK}@", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    text = _SCHEME.sub(rf"\1{MASK}", text)
    return _KNOWN.sub(MASK, text)
