"""What apt is set to: sources.list and sources.list.d (sources.list(5)). apt has nothing built in."""

import re
from collections.abc import Iterator
from typing import Final

from enforcer.presets.client import Client, Setting, settings_of
from enforcer.presets.machine import Machine

_OPTIONS: Final = re.compile(r"\[[^\]]*\]\s*")


def _configured(machine: Machine) -> Iterator[Setting]:
    for file in machine.found("etc/apt/sources.list", "etc/apt/sources.list.d/*.list"):
        yield from settings_of("archives", one_line(machine.text(file) or ""), str(file), machine)
    for file in machine.found("etc/apt/sources.list.d/*.sources"):
        yield from settings_of("archives", stanzas(machine.text(file) or ""), str(file), machine)


def one_line(text: str) -> Iterator[str]:
    """Read the URIs of `deb [options] URI suite component…`."""
    for line in text.splitlines():
        kind, _, rest = line.partition("#")[0].strip().replace("\t", " ").partition(" ")
        words = _OPTIONS.sub("", rest.strip(), count=1).split()
        if kind in {"deb", "deb-src"} and words:
            yield words[0]


def stanzas(text: str) -> Iterator[str]:
    """Read the URIs of deb822 stanzas, but for those with `Enabled: no`."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in {" ", "\t"}:
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            else:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields.get("enabled", "yes").lower() not in {"no", "false", "0", "off"}:
            yield from fields.get("uris", "").split()


CLIENT: Final = Client("apt", ("archives",), _configured)
