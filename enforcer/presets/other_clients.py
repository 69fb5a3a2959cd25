"""Discovers the registries of cargo, go, gem, Maven, conda, apt and Docker's daemon from their files or defaults.

It runs no program. A default that is only in a client's binary, as cargo's before its first use, must be given by hand.
"""

import io
import re
import tomllib
import zipfile
from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET

import yaml

from enforcer.presets.client import (
    Client,
    DiscoveredHost,
    Machine,
    Setting,
    find_common_base,
    find_hosts,
    is_internal,
    read_urls,
)
from enforcer.presets.fetch import FetchError, Web
from proxy.wire import strict_json
from rules.loading.preset_locks import LockedPlace, Origin

_OPTIONS: Final = re.compile(r"\[[^\]]*\]\s*")  # of a line of sources.list


def _cargo(machine: Machine) -> Iterator[Setting]:
    for name in ("config.toml", "config"):
        file = machine.home / ".cargo" / name
        text = machine.text(file)
        if text is None:
            continue
        try:
            sources = tomllib.loads(text).get("source", {})
            wanted = sources.get("crates-io", {}).get("replace-with")
            url = sources.get(wanted, {}).get("registry", "") if wanted else ""
        except (tomllib.TOMLDecodeError, AttributeError, TypeError):
            machine.notes.append(f"{file} was not read: it is no configuration of cargo's")
            continue
        if url:
            yield from read_urls("index", [str(url).removeprefix("sparse+")], f"source.{wanted} in {file}", machine)
            return
    # What cargo has used so far: it names the copy of an index by its host and a hash.
    for place in sorted((machine.home / ".cargo/registry/index").glob("index.*-????????????????")):
        host = place.name.rpartition("-")[0]
        yield Setting("index", f"https://{host}", f"used by cargo before ({place})")


def _crates(web: Web, index: LockedPlace) -> list[DiscoveredHost]:
    """Read `dl` of the index's configuration (The Cargo Book, "Registry Index")."""
    answer = web.get(f"{index.origin.url}/config.json", "application/json", inside=is_internal(index))
    try:
        place = str(strict_json.loads(answer.body)["dl"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FetchError(f"{index.origin.url}/config.json is no index's (status {answer.status})") from error
    place = place.partition("{")[0]
    base = find_common_base([place.partition("://")[2].partition("/")[2].join(("/", "/"))])
    origins = find_hosts([place], answer.url, index.origin)
    return [
        DiscoveredHost("files", origin._replace(base=base), f"`dl` in {index.origin.url}/config.json")
        for origin in origins
    ]


def _go(machine: Machine) -> Iterator[Setting]:
    """Read `go env`'s files: the user's over the one that comes with go (Go 1.21 release notes, go.env)."""
    found: dict[str, tuple[str, str]] = {}
    files = machine.find("usr/local/go/go.env", "usr/lib/go*/go.env", "usr/share/go*/go.env", "opt/go/go.env")
    for file in (*files, machine.home / ".config/go/env"):
        for line in (machine.text(file) or "").splitlines():
            key, separator, value = line.partition("=")
            if separator and key.strip() in {"GOPROXY", "GOSUMDB"}:
                found[key.strip()] = value.strip(), str(file)
    proxies, source = found.get("GOPROXY", ("", ""))
    urls = [url for url in re.split(r"[,|]", proxies) if url not in {"", "direct", "off"}]
    yield from read_urls("proxy", urls, f"GOPROXY in {source}", machine)
    database, source = found.get("GOSUMDB", ("", ""))
    words = database.split()
    if words and words[0] != "off":
        url = words[1] if len(words) > 1 else f"https://{words[0].partition('+')[0]}"
        yield from read_urls("checksums", [url], f"GOSUMDB in {source}", machine)


def _gems(machine: Machine) -> Iterator[Setting]:
    for file in (machine.home / ".gemrc", machine.home / ".config/gem/gemrc", machine.system("etc/gemrc")):
        text = machine.text(file)
        fields = _yaml(text)
        listed = fields.get(":sources") or fields.get("sources")
        if isinstance(listed, list) and listed:
            yield from read_urls("sources", map(str, listed), f"sources in {file}", machine)
            return
    for file in machine.find(
        "usr/lib/ruby/**/rubygems/defaults.rb",
        "usr/share/rubygems/rubygems/defaults.rb",
        "usr/local/lib/ruby/**/rubygems/defaults.rb",
    ):
        match = re.search(r"def self\.default_sources\s+%w\[([^\]]*)\]", machine.text(file) or "")
        if match is not None:
            yield from read_urls("sources", match[1].split(), f"built into gem ({file})", machine, built_in=True)
            return


def _maven(machine: Machine) -> Iterator[Setting]:
    files = machine.find("etc/maven/settings.xml", "usr/share/maven/conf/settings.xml", "opt/maven/conf/settings.xml")
    for file in (machine.home / ".m2/settings.xml", *files):
        root = _xml(machine.data(file))
        for mirror in [] if root is None else root.findall(".//{*}mirror"):
            covered = (mirror.findtext("{*}mirrorOf") or "").split(",")
            blocked = mirror.findtext("{*}blocked") == "true"
            if not blocked and {"central", "*", "external:*"} & {word.strip() for word in covered}:
                yield from read_urls("repository", [mirror.findtext("{*}url") or ""], f"mirror in {file}", machine)
                return
    for jar in machine.find("usr/share/maven/lib/maven-model-builder-*.jar", "opt/maven/lib/maven-model-builder-*.jar"):
        data = machine.data(jar)
        try:
            pom = zipfile.ZipFile(io.BytesIO(data or b"")).read("org/apache/maven/model/pom-4.0.0.xml")
        except (KeyError, zipfile.BadZipFile):
            continue
        root = _xml(pom)
        url = None if root is None else root.findtext("{*}repositories/{*}repository/{*}url")
        if url:
            yield from read_urls("repository", [url], f"built into Maven ({jar})", machine, built_in=True)
            return


def _conda(machine: Machine) -> Iterator[Setting]:
    installed = [
        *(machine.home / name for name in ("miniconda3", "anaconda3", "miniforge3")),
        *machine.find("opt/*conda*", "opt/miniforge*"),
    ]
    files = [
        machine.home / ".condarc",
        *machine.find("etc/conda/.condarc", "etc/conda/condarc"),
        *(place / ".condarc" for place in installed),
    ]
    alias = source = ""
    defaults: list[str] = []
    channels: list[str] = []
    for file in files:
        fields = _yaml(machine.text(file))
        alias = alias or str(fields.get("channel_alias") or "").rstrip("/")
        defaults = defaults or _list(fields.get("default_channels"))
        if not channels and _list(fields.get("channels")):
            channels, source = _list(fields.get("channels")), f"channels in {file}"
    constants = [
        path for place in installed for path in sorted(place.glob("lib/python3*/site-packages/conda/base/constants.py"))
    ]
    for path in constants:
        text = machine.text(path) or ""
        listed = re.search(r"DEFAULT_CHANNELS_UNIX[^=]*=\s*\(([^)]*)\)", text)
        named = re.search(r"DEFAULT_CHANNEL_ALIAS[^=]*=\s*['\"]([^'\"]+)['\"]", text)
        defaults = defaults or (re.findall(r"['\"](https?://[^'\"]+)['\"]", listed[1]) if listed else [])
        alias = alias or (named[1].rstrip("/") if named else "")
        source = source or f"built into conda ({path})"
    built_in = source.startswith("built into ")
    for channel in channels or ["defaults"]:
        if channel == "defaults":
            yield from read_urls("channels", defaults, source, machine, built_in=built_in)
        elif "://" in channel or alias:
            yield from read_urls("channels", [channel if "://" in channel else f"{alias}/{channel}"], source, machine)
        else:
            machine.notes.append(f"{source}: where the channel `{channel}` lies is not said")


def _apt(machine: Machine) -> Iterator[Setting]:
    """Read sources.list and sources.list.d (sources.list(5)). apt has nothing built in."""
    for file in machine.find("etc/apt/sources.list", "etc/apt/sources.list.d/*.list"):
        yield from read_urls("archives", one_line(machine.text(file) or ""), str(file), machine)
    for file in machine.find("etc/apt/sources.list.d/*.sources"):
        yield from read_urls("archives", stanzas(machine.text(file) or ""), str(file), machine)


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


def _docker(machine: Machine) -> Iterator[Setting]:
    """Read the mirrors of Docker's daemon.

    Its default registry is only in its binary, and other companies' registries are in no configuration: give them by
    hand, as in `exeat presets lock ghcr=https://HOST`.
    """
    file = machine.system("etc/docker/daemon.json")
    text = machine.text(file)
    try:
        mirrors = strict_json.loads(text)["registry-mirrors"] if text else []
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if isinstance(mirrors, list):
        yield from read_urls("registry", map(str, mirrors), f"registry-mirrors in {file}", machine)


def _nothing(_machine: Machine) -> tuple[Setting, ...]:
    return ()


def _tokens(web: Web, registry: LockedPlace) -> list[DiscoveredHost]:
    """Find the token server (OCI distribution specification; RFC 6750).

    Layers are assumed on the registry itself. If a pull goes elsewhere, the denial names the host to lock as
    `ghcr.layers=https://HOST`.
    """
    answer = web.get(f"{registry.origin.url}/v2/", "application/json", inside=is_internal(registry))
    layers = DiscoveredHost("layers", registry.origin, "the registry itself, until a pull is sent elsewhere")
    if answer.status == 200:
        return [DiscoveredHost("token", registry.origin, "needs no token"), layers]
    match = re.search(r'realm="(https?://[^"\s?]+)"', answer.headers.get("www-authenticate", ""))
    if answer.status != 401 or match is None:
        raise FetchError(f"{registry.origin.url} doesn't answer as a container registry does (status {answer.status})")
    try:
        realm = Origin.parse(match[1])
    except ValueError as error:
        raise FetchError(f"{registry.origin.url} gives out tokens where nothing can be locked: {error}") from error
    if registry.origin.scheme == "https" and realm.scheme != "https":
        raise FetchError(f"{registry.origin.url} gives out tokens at {realm.url}, which is not https")
    return [DiscoveredHost("token", realm, f"where {registry.origin.url} says that tokens are given out"), layers]


def _yaml(text: str | None) -> dict[str, object]:
    try:
        value = yaml.safe_load(text or "")
    except (yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _xml(data: bytes | None) -> ET.Element | None:
    try:
        return ET.fromstring(data) if data else None  # noqa: S314  (a file that only root or we can write)
    except ET.ParseError:
        return None


CLIENTS: Final = (
    Client("apt", ("archives",), _apt),
    Client("crates", ("index", "files"), _cargo, _crates, ("CARGO_HOME",)),
    Client("go-modules", ("proxy", "checksums"), _go, None, ("GOPROXY", "GOSUMDB", "GOENV", "GOFLAGS")),
    Client("rubygems", ("sources",), _gems, None, ("GEMRC",)),
    Client("maven-central", ("repository",), _maven, None, ("MAVEN_ARGS", "MAVEN_OPTS")),
    Client("conda", ("channels",), _conda, None, ("CONDA_CHANNELS", "CONDARC")),
    Client("docker-hub", ("registry", "token", "layers"), _docker, _tokens),
    Client("ghcr", ("registry", "token", "layers"), _nothing, _tokens),
)
