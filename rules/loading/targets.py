"""One entry of `to`: a name, a pattern, an address or a CIDR; and what to write instead of what is none of them."""

from typing import Final

from rules.addresses import Network, parse_address, parse_network
from rules.names import InvalidName
from rules.patterns import NamePattern
from rules.problems import quoted

# “x” and the like: quotes that word processors make, and YAML takes for letters
_TYPESET: Final = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"


def parse_target(text: str) -> NamePattern | Network:
    """Read an entry. Raises ValueError with what belongs there, and where the rest of it belongs."""
    if text.strip(_TYPESET) != text:
        raise ValueError(f"{quoted(text)} stands between typographic quotes: write `{text.strip(_TYPESET)}`")
    if "/" in text or ":" in text or parse_address(text) is not None:
        try:
            return parse_network(text)
        except ValueError as error:
            raise ValueError(_instead(text) or str(error)) from None
    if text[:1] == "." and _is_target(text[1:]):
        raise ValueError(f"{quoted(text)} begins with a dot: write `**{text}` for the name and all below it")
    return NamePattern.parse(text)


def _instead(text: str) -> str:
    """Take apart what looks like a URL, or has a port or a path; empty if that doesn't help."""
    scheme, separator, rest = text.partition("://")
    host, slash, path = (rest if separator else scheme).partition("/")
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    bare = name.strip("[]") if name.startswith("[") else name
    if not _is_target(bare) or not all("0" <= digit <= "9" for digit in port):
        return ""
    if not separator and not port and (not path or parse_address(bare) is not None):
        return ""  # a CIDR that is wrong
    also = [f"the port under `ports`, as in `{port}/tls`"] if port and port not in {"80", "443"} else []
    also += ["the port under `ports`"] if port in {"80", "443"} else []
    also += [f"the path under `http`, as in `{{paths: [/{path}]}}`"] if slash and path and path.isprintable() else []
    return f"{quoted(text)}: `to` takes a name or an address; write {' and '.join([quoted(bare), *also])}"


def _is_target(text: str) -> bool:
    if parse_address(text) is not None:
        return True
    try:
        NamePattern.parse(text)
    except InvalidName:
        return False
    return True
