"""Discovers npm's registry: npmrc files of the system and the user (`man npmrc`), else npm's default.

A project's own `.npmrc` is never read: that is the checkout's.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from enforcer.presets.client import (
    Client,
    DiscoveredHost,
    Machine,
    Setting,
    find_hosts,
    find_redirect,
    is_internal,
    read_urls,
)
from enforcer.presets.fetch import FetchError, Web
from proxy.wire import strict_json
from rules.loading.preset_locks import LockedPlace

if TYPE_CHECKING:
    from pathlib import Path

_PROBES: Final = ("abbrev", "once", "npm")  # small packages that a registry has if it has any
_ACCEPT: Final = "application/vnd.npm.install-v1+json"  # the short form of a package's metadata
_INSTALLED: Final = (
    "usr/lib/node_modules/npm",
    "usr/local/lib/node_modules/npm",
    "usr/share/nodejs/npm",
    "opt/*/lib/node_modules/npm",
)
_DEFINITIONS: Final = "node_modules/@npmcli/config/lib/definitions/definitions.js"
_DEFAULT: Final = re.compile(r"""\('registry',\s*\{\s*default:\s*['"`](https?://[^'"`\s]+)['"`]""")


def _configured(machine: Machine) -> Iterator[Setting]:
    programs = [
        *machine.find(*_INSTALLED),
        *sorted(machine.home.glob(".nvm/versions/node/*/lib/node_modules/npm")),
    ]
    files = [
        *(program / "npmrc" for program in programs),
        *machine.find("usr/etc/npmrc", "usr/local/etc/npmrc", "etc/npmrc"),
        machine.home / ".npmrc",
    ]
    found: dict[str, tuple[str, Path]] = {}
    for file in files:  # a later file overrides an earlier one
        for key, value in _options(machine.text(file) or ""):
            if "${" in value:
                machine.notes.append(f"{file}: {key} depends on the environment, which is not read")
            else:
                found[key] = value, file
    for key, (value, file) in found.items():
        yield from read_urls("registry", [value], f"{key} in {file}", machine)
    if "registry" not in found:
        for program in programs:
            path = program / _DEFINITIONS
            match = _DEFAULT.search(machine.text(path) or "")
            if match is not None:
                yield Setting("registry", match[1], f"built into npm ({path})", built_in=True)
                return


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Read `registry` and `@scope:registry` and nothing else: an npmrc holds tokens."""
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        key = key.strip()
        if separator and (key == "registry" or (key.startswith("@") and key.endswith(":registry"))):
            yield key, value.strip().strip("\"'")


def _learn(web: Web, registry: LockedPlace) -> list[DiscoveredHost]:
    """Request a small package, and read the hosts of its tarballs."""
    for package in _PROBES:
        answer = web.get(f"{registry.origin.url}/{package}", _ACCEPT, inside=is_internal(registry))
        if answer.status in {401, 403}:
            raise FetchError(f"{registry.origin.url} wants credentials ({answer.status}), which are not read here")
        urls = tarball_urls(answer.body) if answer.status == 200 else []
        if urls:
            source = f"what {registry.origin.url} answers about `{package}`"
            learnt = [
                DiscoveredHost("tarballs", origin, source) for origin in find_hosts(urls, answer.url, registry.origin)
            ]
            return learnt + find_redirect("registry", answer, registry.origin)
    raise FetchError(f"{registry.origin.url} has none of {', '.join(_PROBES)}, so where tarballs lie can't be seen")


def tarball_urls(body: bytes) -> list[str]:
    """Read the URLs of a package's tarballs. Raises FetchError."""
    try:
        versions = strict_json.loads(body)["versions"]
        return [str(version["dist"]["tarball"]) for version in versions.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FetchError("the registry's answer is no package's metadata") from error


CLIENT: Final = Client(
    "npm", ("registry", "tarballs"), _configured, _learn, ("npm_config_registry", "NPM_CONFIG_REGISTRY")
)
