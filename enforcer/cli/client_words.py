"""Attempts in the words of a client: `curl -X POST https://host/path`, `wget URL`, `git clone URL`."""

import shlex
from typing import Final

_CLIENTS: Final = frozenset({"curl", "wget"})
_FETCHES: Final = frozenset({"clone", "ls-remote", "fetch", "pull"})
# Options that say which method it is, or that a body follows (curl(1), wget(1))
_METHODS: Final = ("-X", "--request", "--method")
_BODIES: Final = (
    "-d", "-F", "--data", "--data-ascii", "--data-binary", "--data-raw", "--data-urlencode", "--form", "--json",
    "--post-data", "--post-file", "--body-data", "--body-file",
)  # fmt: skip
_UPLOADS: Final = ("-T", "--upload-file")
_HEADS: Final = ("-I", "--head", "--spider")
_VALUED: Final = ("-H", "--header", "-o", "--output", "-O", "-u", "--user", "-A", "--user-agent", "-m", "--max-time")


def attempt_of(text: str) -> str:
    """Return what a client's command line asks for, as an attempt; any other text as it is. Raises ValueError."""
    program = text.split(" ", 1)[0].rpartition("/")[2]
    if program not in _CLIENTS and not text.startswith("git "):
        return text
    words = shlex.split(text)
    if program == "git":
        url = next((word for word in words[2:] if "://" in word), None)
        return f"git fetch {url}" if len(words) > 2 and words[1] in _FETCHES and url else text
    return _request(words[1:], text)


def _request(words: list[str], text: str) -> str:
    method, url = "", ""
    follows = ""  # the option that the next word is the value of
    for word in words:
        name, equals, value = word.partition("=")
        if follows:
            method = word if follows in _METHODS else method
            follows = ""
        elif not word.startswith("-"):
            url = url or word
        elif name in _METHODS and equals:
            method = value
        elif word.startswith("-X") and len(word) > 2:
            method = word[2:]
        elif name in _HEADS:
            method = method or "HEAD"
        elif name in (*_METHODS, *_BODIES, *_UPLOADS, *_VALUED):
            method = method or ("POST" if name in _BODIES else "PUT" if name in _UPLOADS else "")
            follows = "" if equals or (name == "-O" and text.startswith("curl")) else name
    if not url:
        raise ValueError(f"`{text}` names no URL")
    return f"{method or 'GET'} {url if '://' in url else f'http://{url}'}"
