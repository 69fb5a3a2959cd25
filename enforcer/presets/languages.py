"""What cargo, go, gem, Maven and conda are set to, each by its system's and user's files, else what it has built in.

Only what can be read without running anything. Where a client keeps its default in its binary, as cargo does, and it
hasn't used it yet, whoever locks has to say it.
"""

import io
import re
import tomllib
import zipfile
from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET

import yaml

from enforcer.presets.client import Client, Learnt, Setting, common_base, hosts_of, inside, settings_of
from enforcer.presets.fetch import FetchError, Web
from enforcer.presets.machine import Machine
from proxy.wire import strict_json
from rules.loading.preset_locks import Locked


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
            yield from settings_of("index", [str(url).removeprefix("sparse+")], f"source.{wanted} in {file}", machine)
            return
    # What cargo has used so far: it names the copy of an index by its host and a hash.
    for place in sorted((machine.home / ".cargo/registry/index").glob("index.*-????????????????")):
        host = place.name.rpartition("-")[0]
        yield Setting("index", f"https://{host}", f"used by cargo before ({place})")


def _crates(web: Web, index: Locked) -> list[Learnt]:
    """Read `dl` of the index's configuration (The Cargo Book, "Registry Index")."""
    answer = web.get(f"{index.origin.url}/config.json", "application/json", inside=inside(index))
    try:
        place = str(strict_json.loads(answer.body)["dl"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FetchError(f"{index.origin.url}/config.json is no index's (status {answer.status})") from error
    place = place.partition("{")[0]
    base = common_base([place.partition("://")[2].partition("/")[2].join(("/", "/"))])
    origins = hosts_of([place], answer.url, index.origin)
    return [
        Learnt("files", origin._replace(base=base), f"`dl` in {index.origin.url}/config.json") for origin in origins
    ]


def _go(machine: Machine) -> Iterator[Setting]:
    """Read `go env`'s files: the user's over the one that comes with go (Go 1.21 release notes, go.env)."""
    found: dict[str, tuple[str, str]] = {}
    files = machine.found("usr/local/go/go.env", "usr/lib/go*/go.env", "usr/share/go*/go.env", "opt/go/go.env")
    for file in (*files, machine.home / ".config/go/env"):
        for line in (machine.text(file) or "").splitlines():
            key, separator, value = line.partition("=")
            if separator and key.strip() in {"GOPROXY", "GOSUMDB"}:
                found[key.strip()] = value.strip(), str(file)
    proxies, source = found.get("GOPROXY", ("", ""))
    urls = [url for url in re.split(r"[,|]", proxies) if url not in {"", "direct", "off"}]
    yield from settings_of("proxy", urls, f"GOPROXY in {source}", machine)
    database, source = found.get("GOSUMDB", ("", ""))
    words = database.split()
    if words and words[0] != "off":
        url = words[1] if len(words) > 1 else f"https://{words[0].partition('+')[0]}"
        yield from settings_of("checksums", [url], f"GOSUMDB in {source}", machine)


def _gems(machine: Machine) -> Iterator[Setting]:
    for file in (machine.home / ".gemrc", machine.home / ".config/gem/gemrc", machine.system("etc/gemrc")):
        text = machine.text(file)
        fields = _yaml(text)
        listed = fields.get(":sources") or fields.get("sources")
        if isinstance(listed, list) and listed:
            yield from settings_of("sources", map(str, listed), f"sources in {file}", machine)
            return
    for file in machine.found(
        "usr/lib/ruby/**/rubygems/defaults.rb",
        "usr/share/rubygems/rubygems/defaults.rb",
        "usr/local/lib/ruby/**/rubygems/defaults.rb",
    ):
        match = re.search(r"def self\.default_sources\s+%w\[([^\]]*)\]", machine.text(file) or "")
        if match is not None:
            yield from settings_of("sources", match[1].split(), f"built into gem ({file})", machine, built_in=True)
            return


def _maven(machine: Machine) -> Iterator[Setting]:
    files = machine.found("etc/maven/settings.xml", "usr/share/maven/conf/settings.xml", "opt/maven/conf/settings.xml")
    for file in (machine.home / ".m2/settings.xml", *files):
        root = _xml(machine.data(file))
        for mirror in [] if root is None else root.findall(".//{*}mirror"):
            covered = (mirror.findtext("{*}mirrorOf") or "").split(",")
            blocked = mirror.findtext("{*}blocked") == "true"
            if not blocked and {"central", "*", "external:*"} & {word.strip() for word in covered}:
                yield from settings_of("repository", [mirror.findtext("{*}url") or ""], f"mirror in {file}", machine)
                return
    for jar in machine.found(
        "usr/share/maven/lib/maven-model-builder-*.jar", "opt/maven/lib/maven-model-builder-*.jar"
    ):
        data = machine.data(jar)
        try:
            pom = zipfile.ZipFile(io.BytesIO(data or b"")).read("org/apache/maven/model/pom-4.0.0.xml")
        except (KeyError, zipfile.BadZipFile):
            continue
        root = _xml(pom)
        url = None if root is None else root.findtext("{*}repositories/{*}repository/{*}url")
        if url:
            yield from settings_of("repository", [url], f"built into Maven ({jar})", machine, built_in=True)
            return


def _conda(machine: Machine) -> Iterator[Setting]:
    installed = [
        *(machine.home / name for name in ("miniconda3", "anaconda3", "miniforge3")),
        *machine.found("opt/*conda*", "opt/miniforge*"),
    ]
    files = [
        machine.home / ".condarc",
        *machine.found("etc/conda/.condarc", "etc/conda/condarc"),
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
            yield from settings_of("channels", defaults, source, machine, built_in=built_in)
        elif "://" in channel or alias:
            yield from settings_of("channels", [channel if "://" in channel else f"{alias}/{channel}"], source, machine)
        else:
            machine.notes.append(f"{source}: where the channel `{channel}` lies is not said")


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
    Client("crates", ("index", "files"), _cargo, _crates, ("CARGO_HOME",)),
    Client("go-modules", ("proxy", "checksums"), _go, None, ("GOPROXY", "GOSUMDB", "GOENV", "GOFLAGS")),
    Client("rubygems", ("sources",), _gems, None, ("GEMRC",)),
    Client("maven-central", ("repository",), _maven, None, ("MAVEN_ARGS", "MAVEN_OPTS")),
    Client("conda", ("channels",), _conda, None, ("CONDA_CHANNELS", "CONDARC")),
)
