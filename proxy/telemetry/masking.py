"""Masks credentials and shortens texts before they enter an event (invariant 8).

Masking recognises the common ways of passing a secret on a command line. Like every such list it is incomplete: do not
rely on it. A cut text states how much is missing. Bytes that are not UTF-8 are escaped, so that every reader accepts
the text.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST_TEXT = 1024  # characters of any one text that are kept
LONGEST_LIST = 64  # members of any one list that are kept
LONGEST_LIST_TEXT = 4096  # characters of the whole list: one connection can't fill a disk
ROOM_FOR_NOTE = 24  # characters


def cut(text: str) -> str:
    """Return `text` cut to `LONGEST_TEXT` characters, with a note of how much is missing."""
    if len(text) <= LONGEST_TEXT:
        return text
    kept = LONGEST_TEXT - ROOM_FOR_NOTE
    return f"{text[:kept]}[{len(text) - kept} more]"


def last_of(text: str, longest: int) -> str:
    """Return the end of a long host name: the end tells who owns it."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def cut_list(texts: "Sequence[str]") -> "Sequence[str]":
    """Return `texts` with at most `LONGEST_LIST` members and `LONGEST_LIST_TEXT` characters, and a note of the rest."""
    if len(texts) <= LONGEST_LIST and sum(map(len, texts)) <= LONGEST_LIST_TEXT:
        return texts
    kept: list[str] = []
    room = LONGEST_LIST_TEXT - ROOM_FOR_NOTE
    for text in texts[: LONGEST_LIST - 1]:
        shorter = cut(text)
        room -= len(shorter)
        if room < 0:
            break
        kept.append(shorter)
    missing = len(texts) - len(kept)
    return (*kept, f"[{missing} more]") if missing else tuple(kept)


def without_surrogates(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 can't encode, escaped."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that is no escaped byte (PEP 383)
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def cut_members(labels: "Mapping[str, str]", room: int = LONGEST_LIST_TEXT) -> dict[str, str]:
    """Return the first members up to `room` characters, with keys and values cut, and a note of the rest."""
    kept: dict[str, str] = {}
    for key, value in labels.items():
        room -= min(len(key), LONGEST_TEXT) + min(len(value), LONGEST_TEXT)
        if room < 0 or len(kept) == LONGEST_LIST:
            kept["[more]"] = str(len(labels) - len(kept))
            break
        kept[cut(key)] = cut(value)
    return kept


MASK = "***"  # replaces a text that looks like a secret

# Possessive quantifiers, atomic groups and matches only at word starts: no argument can cause backtracking.
_START = r"(?<![\w.-])"
_SECRET = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credential|auth(?!or)"
    r"|(?:api|access|private|account|signing)[-_.]?key)"
)
# Texts, not compiled patterns: `re` compiles each at first use, which keeps start-up fast.
_FLAG = rf"(?i)--?(?>[\w.-]*?{_SECRET}[\w.-]*+)"  # --db-password X
_USER_FLAG = r"(?s)(-u|--user|--proxy-user|-U)(=?)([^:]*+):.++"  # curl -u name:secret
_REPLACEMENTS = (
    (r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*", rf"\1{MASK}"),
    (
        (
            rf"(?i)({_START}(?:(?:proxy-)?authorization|(?:set-)?cookie|x-(?>[\w-]*?{_SECRET}[\w-]*+))\s*+:\s*+)"
            r"[^\"'\r\n]++"
        ),
        rf"\1{MASK}",
    ),
    (r"(?i)(\b[a-z][a-z0-9+.-]{0,31}+://)[^/?#\s@]++@", rf"\1{MASK}@"),  # RFC 3986 section 3.2.1
    (  # GITHUB_TOKEN=X, {"api_key": "X"}, password: X
        (
            rf"(?i)({_START}(?>[\w.-]*?{_SECRET}[\w.-]*+)[\"']?\s*+[=:]\s*+)"
            r"(?:\"[^\"]*+\"?|'[^']*+'?|[^\s,;&\"']++)"
        ),
        rf"\1{MASK}",
    ),
    (r"(?i)\b((?:bearer|basic)\s++)[\w.~+/=-]{8,}+", rf"\1{MASK}"),
    (  # token formats that services made recognisable
        (
            r"\b(?:gh[oprsu]_\w{16,}+|github_pat_\w{16,}+|glpat-[\w-]{16,}+|sk-[\w-]{16,}+|xox[a-z]-[\w-]{10,}+"
            r"|hf_\w{16,}+|npm_\w{16,}+|pypi-[\w-]{16,}+|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{30,}+)"
            # A JWT (RFC 7519), tried once per word, as each try reads the word to its end.
            r"|(?<![\w-])(?>[\w-]*?\beyJ)[\w-]{10,}+\.[\w-]{10,}+\.[\w-]*+"
        ),
        MASK,
    ),
)
_USER_FLAGS = frozenset({"-u", "-U", "--user", "--proxy-user"})


def masked(argv: "Sequence[str]") -> tuple[str, ...]:
    """Return arguments with credentials replaced, and long arguments and lists cut.

    Masked arguments stay unchanged.
    """
    # Cut first: a task chooses its arguments and must not choose how long the gate scans them.
    return _mask_arguments(tuple(map(cut, cut_list(argv))))


@lru_cache(maxsize=256)  # most processes open several connections
def _mask_arguments(argv: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_mask_argument(before, argument) for before, argument in zip(("", *argv), argv, strict=False))


def _mask_argument(flag: str, argument: str) -> str:
    """Mask one argument, given the one before it."""
    if re.fullmatch(_FLAG, flag) and not argument.startswith("-"):
        return MASK
    if flag in _USER_FLAGS:
        name, colon, _ = argument.partition(":")
        return f"{name}:{MASK}" if colon and "/" not in name else _mask_text(argument)
    if match := re.fullmatch(_USER_FLAG, argument):
        return f"{match[1]}{match[2]}{match[3]}:{MASK}"
    return _mask_text(argument)


def _mask_text(text: str) -> str:
    for pattern, replacement in _REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return text
