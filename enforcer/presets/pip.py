"""Discovers pip's index: files of the system and the user (pip's documentation, "Configuration"), else its default.

A virtual environment's own file is not read: environments lie in workspaces.
"""

import ast
import io
import sysconfig
import zipfile
from collections.abc import Iterator
from configparser import Error, RawConfigParser
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

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

_PROBES: Final = ("pip", "setuptools", "six")  # projects that an index has if it has any
_ACCEPT: Final = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"  # PEP 691
_FILES: Final = (".whl", ".tar.gz", ".zip", ".tar.bz2", ".tgz", ".egg")
_BUILT_IN: Final = "pip/_internal/models/index.py"


def _configured(machine: Machine) -> Iterator[Setting]:
    files = [
        machine.system("etc/xdg/pip/pip.conf"),
        machine.system("etc/pip.conf"),
        machine.home / ".pip/pip.conf",
        machine.home / ".config/pip/pip.conf",
    ]
    found: dict[str, tuple[list[str], str]] = {}
    for file in files:  # a later one's word counts
        text = machine.text(file)
        for key, value in _options(text, file, machine).items() if text else ():
            found[key] = value.split(), str(file)
    for key in ("index-url", "extra-index-url"):
        if key in found:
            yield from read_urls("index", found[key][0], f"{key} in {found[key][1]}", machine)
    if "index-url" not in found:
        yield from _built_in(machine)


def _options(text: str, file: Path, machine: Machine) -> dict[str, str]:
    parser = RawConfigParser()
    try:
        parser.read_string(text)
    except Error:
        machine.notes.append(f"{file} was not read: it is no configuration of pip's")
        return {}
    options: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            options |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    return options


def _built_in(machine: Machine) -> Iterator[Setting]:
    """Read the default from the source of the first pip found: next to us, in Python's bundle, in the system's."""
    ours = Path(sysconfig.get_path("purelib"))
    beside = ours / _BUILT_IN
    bundles = [*Path(sysconfig.get_path("stdlib"), "ensurepip/_bundled").glob("pip-*.whl")]
    system = machine.find(
        "usr/lib/python3/dist-packages/" + _BUILT_IN,
        "usr/share/python-wheels/pip-*.whl",
        "usr/lib/python3*/site-packages/" + _BUILT_IN,
        "usr/lib/python3*/ensurepip/_bundled/pip-*.whl",
        "usr/local/lib/python3*/site-packages/" + _BUILT_IN,
    )
    for path in (beside, *bundles, *system):
        # What is beside us runs as us already; the rest has to be nobody else's.
        data = path.read_bytes() if path is beside and path.is_file() else machine.data(path)
        source = _source_of(data, path) if data else None
        url = _default_index(source) if source else None
        if url is not None:
            yield Setting("index", url, f"built into pip ({path})", built_in=True)
            return


def _source_of(data: bytes, path: Path) -> str | None:
    try:
        if path.suffix == ".whl":
            data = zipfile.ZipFile(io.BytesIO(data)).read(_BUILT_IN)
        return data.decode()
    except (KeyError, UnicodeDecodeError, zipfile.BadZipFile):
        return None


def _default_index(source: str) -> str | None:
    """Find `PyPI = PackageIndex("https://…/", …)`; nothing is executed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            first = node.value.args[0]
            if names == ["PyPI"] and isinstance(first, ast.Constant) and isinstance(first.value, str):
                return first.value.rstrip("/") + "/simple"
    return None


def _learn(web: Web, index: LockedPlace) -> list[DiscoveredHost]:
    """Request a project that every index has, and read the hosts of its files."""
    for project in _PROBES:
        answer = web.get(f"{index.origin.url}/{project}/", _ACCEPT, inside=is_internal(index))
        if answer.status in {401, 403}:
            raise FetchError(f"{index.origin.url} wants credentials ({answer.status}), which are not read here")
        urls = file_urls(answer.body, answer.headers.get("content-type", "")) if answer.status == 200 else []
        if urls:
            source = f"what {index.origin.url} answers about `{project}`"
            learnt = [DiscoveredHost("files", origin, source) for origin in find_hosts(urls, answer.url, index.origin)]
            return learnt + find_redirect("index", answer, index.origin)
    raise FetchError(f"{index.origin.url} shows no files of {', '.join(_PROBES)}, so where they lie can't be seen")


def file_urls(body: bytes, kind: str) -> list[str]:
    """Read the URLs of a project's files: JSON (PEP 691) or HTML (PEP 503). Raises FetchError."""
    links = _Links()
    if "json" in kind:
        try:
            links.found = [str(file["url"]) for file in strict_json.loads(body)["files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FetchError("the index's answer is not what PEP 691 says") from error
    else:
        links.feed(body.decode("utf-8", "replace"))
    return [url for url in links.found if url.partition("#")[0].partition("?")[0].endswith(_FILES)]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href") if tag == "a" else None
        if href:
            self.found.append(href)


CLIENT: Final = Client(
    "pip", ("index", "files"), _configured, _learn, ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE")
)
