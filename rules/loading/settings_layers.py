"""Merges the settings of several files: layers bound them, other files only tighten."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from rules.loading.document import Node
from rules.matching.layers import RANKS, strictness
from rules.settings import Settings

_PROXY: Final = ("upstream", "upstream_auth", "upstream_except")  # of one file, or of several that say the same
_UPSTREAM: Final = (*_PROXY, "upstream_ca")


class Said(NamedTuple):
    """The settings of one file, and where each stands."""

    file: str
    layer: bool
    settings: Settings
    nodes: Mapping[str, Node]


class Objection(NamedTuple):
    """A setting that its file can't have."""

    file: str
    node: Node
    message: str


def agree(said: Iterable[Said]) -> tuple[Settings, list[Objection]]:
    """Bring the settings of several files to one: those of layers, tightened by others and never loosened."""
    found: dict[str, Any] = {}
    by: dict[str, str] = {}
    objections: list[Objection] = []
    files = sorted(said, key=lambda each: not each.layer)
    proxy = next((each for each in files if "upstream" in each.nodes), None)
    for each in files:
        for key, node in each.nodes.items():
            value = getattr(each.settings, key, None)
            if key in _UPSTREAM and not each.layer and any(other.layer for other in files):
                objections.append(Objection(each.file, node, f"`{key}` belongs to layers where there are some"))
            elif key in _PROXY and proxy is not None and proxy.file != each.file:
                if key == "upstream" and any(getattr(proxy.settings, k) != getattr(each.settings, k) for k in _PROXY):
                    message = f"`upstream` and what is said of it are others in `{proxy.file}`: leave them out here"
                    objections.append(Objection(each.file, node, message))
            elif key not in found:
                found[key], by[key] = value, each.file
            elif strictness(key, value) > strictness(key, found[key]) and not each.layer:
                message = f"`{key}` is laxer here than in `{by[key]}`, a layer: other files can only tighten it"
                objections.append(Objection(each.file, node, message))
            elif key not in RANKS and key != "idle_timeout" and value != found[key]:
                message = f"`{key}` is another in `{by[key]}`, a layer: leave it out here"
                objections.append(Objection(each.file, node, message))
            elif strictness(key, value) < strictness(key, found[key]):
                found[key], by[key] = value, each.file
    return Settings(**found), objections
