"""Which store it is: a file of this host, or the server that a URL names."""

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from proxy.approvals.store.base import Store

SCHEMES: Final = ("postgresql", "postgres")


class Place(NamedTuple):
    """Where approvals are kept. `url` empty: in a file beside the registry's socket."""

    url: str = ""
    password: str = ""  # the name of a file with nothing else in it
    ca: str = ""  # the name of a file of certificates to trust, instead of the host's own


def check_url(text: str) -> str:
    """Take the URL of a server. Raises ValueError with what to write instead."""
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ValueError("is no URL of a PostgreSQL server: `postgresql://exeat@db.corp.example/approvals`")
    if parts.password is not None:
        raise ValueError("has a password in it: put that into a file, and name it as `password`")
    asked = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if asked not in ([], ["host"]) or parts.fragment:
        raise ValueError("may have `?host=/run/postgresql` at its end, the directory of a socket, and nothing else")
    if parts.port == 0:
        raise ValueError("has a port that is none")
    if not parts.path.strip("/"):
        raise ValueError("names no database: `postgresql://exeat@db.corp.example/approvals`")
    return text


def is_local(url: str) -> bool:
    """Whether what is said to a server stays on this host: a unix socket, or a loopback address by its number."""
    parts = urlsplit(url)
    directory = dict(parse_qsl(parts.query)).get("host", "")
    if directory:
        return directory.startswith("/") and not parts.hostname
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def opened(place: Place, file: Path) -> "Store":
    """Make the store of a place; nothing is opened yet. Raises OSError where its password can't be read."""
    if place.url:
        from proxy.approvals.store.postgres import PostgresStore  # only where it is used

        password = Path(place.password).read_text().rstrip("\r\n") if place.password else None
        return PostgresStore(place.url, password, place.ca or None)
    from proxy.approvals.store.sqlite import SqliteStore

    return SqliteStore(file)
