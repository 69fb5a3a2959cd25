"""Reads an attempt from a client's command line: `curl -X POST URL`, `wget URL`, `git clone URL`, `ssh HOST`."""

import re
import shlex
from collections.abc import Iterator
from typing import Final

# Short options that take a value, which may follow in the same word (curl(1), wget(1))
_LETTERS: Final = {
    "curl": "AbcCdDeEFHKmoPQrtTuUwxXyYz", "wget": "aABDeGiIlOoPQRtTUwX", "ssh": "BbcDEeFIiJLlmOopQRSWw",
}  # fmt: skip
# What people put before a command: a prompt, variables, and programs that start it
_BEFORE: Final = re.compile(r"(?:\$ +|(?:sudo|time|env) +|[A-Za-z_]\w*=\S* +)*")
_OVER_SSH: Final = re.compile(r"(?:ssh://)?(?:[^@/\s]+@)?(\[[0-9A-Fa-f:]+\]|[^:/@\s]+)(?::(\d+)(?=/))?")
_FETCHES: Final = frozenset({"clone", "ls-remote", "fetch", "pull"})
# Options that say which method it is, or that a body follows
_METHODS: Final = {"curl": ("X", "request"), "wget": ("method",)}
_BODIES: Final = {
    "curl": (
        "d", "F", "data", "data-ascii", "data-binary", "data-raw", "data-urlencode", "form", "form-string", "json",
    ),
    "wget": ("post-data", "post-file"),
}  # fmt: skip
_UPLOADS: Final = {"curl": ("T", "upload-file"), "wget": ()}
_HEADS: Final = {"curl": ("I", "head"), "wget": ("spider",)}
_GETS: Final = {"curl": ("G", "get"), "wget": ()}
# Long options with a value, besides those. One that is not here costs nothing, unless its value looks like the URL
_VALUED: Final = frozenset({
    "body-data", "body-file", "cacert", "cert", "connect-timeout", "cookie", "cookie-jar", "doh-url", "header", "key",
    "max-time", "output", "output-document", "output-file", "preproxy", "proxy", "referer", "resolve", "retry",
    "socks5", "socks5-hostname", "timeout", "tries", "url-query", "user", "user-agent", "write-out",
})  # fmt: skip


def read_attempt(text: str) -> str:
    """Return what a client's command line asks for, as an attempt; any other text as it is. Raises ValueError."""
    command = text[_BEFORE.match(text).end() :]  # type: ignore[union-attr]  # it matches anything
    program = command.split(" ", 1)[0].rpartition("/")[2]
    if program not in _LETTERS and program != "git":
        return text
    words = shlex.split(command)
    if program == "git":
        return _fetch(words) or text
    if program == "ssh":
        said: dict[str, str] = {}
        for name, value in _options(program, words[1:]):
            said[name] = value
            if not name:  # what follows is for the host
                break
        return _over_ssh(said.get("", ""), said.get("p", "")) or text
    return _request(program, words[1:], text)


def _fetch(words: list[str]) -> str:
    if len(words) < 3 or words[1] not in _FETCHES:
        return ""
    url = next((word for word in words[2:] if "://" in word and not word.startswith("ssh:")), None)
    if url is not None:
        return f"git fetch {url}"
    return next((_over_ssh(word) for word in words[2:] if "@" in word or word.startswith("ssh:")), "")


def _over_ssh(where: str, port: str = "") -> str:
    found = _OVER_SSH.match(where)
    return f"tcp {found[1]}:{port or found[2] or 22}" if found else ""


def _request(program: str, words: list[str], text: str) -> str:
    method, default, urls = "", "GET", list[str]()
    for name, value in _options(program, words):
        if name in {"", "url"}:
            urls.append(value)
        elif name in _METHODS[program]:
            method = value
        elif name in _HEADS[program]:
            method = method or "HEAD"
        elif name in _GETS[program]:
            method = method or "GET"
        elif name in _BODIES[program]:
            default = "POST"
        elif name in _UPLOADS[program]:
            default = "PUT"
    if not urls:
        raise ValueError(f"`{text}` names no URL")
    url = next((each for each in urls if "://" in each), None)
    return f"{method or default} {f'http://{urls[0]}' if url is None else url}"


def _options(program: str, words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each option without its hyphens, with its value, and each other word with an empty name."""
    valued = {"url", *_VALUED, *_METHODS.get(program, ()), *_BODIES.get(program, ()), *_UPLOADS.get(program, ())}
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name, value if equals or name not in valued else next(rest, "")
        elif word.startswith("-") and len(word) > 1:
            for at, letter in enumerate(word[1:], 2):
                if letter in _LETTERS[program]:
                    yield letter, word[at:] or next(rest, "")
                    break
                yield letter, ""
        else:
            yield "", word
