"""Public suffix list: the names under which strangers register names (publicsuffix.org/list).

Only the data file of the `publicsuffixlist` package is used: building its index takes longer than starting a task.
"""

from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final

_ICANN_END: Final = "// ===END ICANN DOMAINS==="


class Suffix(Enum):
    """Whose names stand under a name."""

    PUBLIC = "public"  # anybody's, by registration: com, co.uk
    PRIVATE = "private"  # anybody's who is that provider's customer: github.io
    NONE = "none"


def suffix_of_wildcard(below: str) -> Suffix:
    """Say whether a wildcard that stands directly under the normalised name `below` covers strangers' names.

    A rule `*.ck` of the list makes suffixes of the names below `ck`, so a wildcard under `ck` itself covers them too;
    and so does `*.amazonaws.com` with what stands under `s3.amazonaws.com`.
    """
    icann, private, above_private = _rules()
    _, _, parent = below.partition(".")
    for rules, kind in ((icann, Suffix.PUBLIC), (private, Suffix.PRIVATE)):
        listed = below in rules or f"*.{below}" in rules
        if listed or (f"*.{parent}" in rules and f"!{below}" not in rules):
            return kind
    return Suffix.PRIVATE if below in above_private else Suffix.NONE


@cache
def _rules() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    import publicsuffixlist  # 6 ms, and only rules with wildcards need it

    icann, _, private = Path(publicsuffixlist.PSLFILE).read_text("utf-8").partition(_ICANN_END)
    private_rules = _parsed(private)
    above = {rule.split(".", labels)[-1] for rule in private_rules for labels in range(1, rule.count(".") + 1)}
    return _parsed(icann), private_rules, frozenset(above)


def _parsed(section: str) -> frozenset[str]:
    """Read rules up to the first white space of each line; non-ASCII labels become A-labels."""
    lines = (line.split()[0] for line in section.splitlines() if line[:1].strip() and not line.startswith("//"))
    return frozenset(line if line.isascii() else _a_label(line) for line in lines)


def _a_label(rule: str) -> str:
    return ".".join(
        label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii") for label in rule.split(".")
    )
