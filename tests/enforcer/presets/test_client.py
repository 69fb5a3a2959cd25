"""Client settings: which files are read, and which are trusted."""

import importlib.util
import os
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer.presets import client
from enforcer.presets.locking import CLIENTS, discover
from enforcer.presets.other_clients import one_line, stanzas
from enforcer.system.errors import HostError
from tests.enforcer.presets.registry_lab import configured, put
from tests.support import harness

CONFIGURED = [
    ("pip", {"/etc/pip.conf": "[global]\nindex-url = https://a.example/simple\n"}, [("index", "https://a.example/simple")]),
    ("pip", {"/etc/pip.conf": "[global]\nindex-url = https://a.example/simple\n", ".config/pip/pip.conf": "[global]\nindex_url = https://b.example/s\n"}, [("index", "https://b.example/s")]),
    ("pip", {"/etc/pip.conf": "[global]\nindex-url=https://a.example/s\nextra-index-url =\n  https://x.example\n  file:///srv\n  https://y.example\n"}, [("index", "https://a.example/s"), ("index", "https://x.example"), ("index", "https://y.example")]),
    ("pip", {"/etc/pip.conf": "[global]\nindex-url=https://a.example/s\n[install]\nindex-url=https://i.example/s\n"}, [("index", "https://i.example/s")]),
    ("npm", {".npmrc": "//a.example/:_authToken=secret\nregistry = 'https://a.example/npm/'\n@corp:registry=https://c.example\n"}, [("registry", "https://a.example/npm/"), ("registry", "https://c.example")]),
    ("npm", {"/etc/npmrc": "registry=https://a.example\n", ".npmrc": "registry=https://b.example\n"}, [("registry", "https://b.example")]),
    ("npm", {"/usr/lib/node_modules/npm/node_modules/@npmcli/config/lib/definitions/definitions.js": "new Definition('registry', {\n  default: `https://built-in.example/`,\n"}, [("registry", "https://built-in.example/")]),
    ("npm", {".npmrc": "registry=https://${HOST}/\n"}, []),
    ("apt", {"/etc/apt/sources.list": "# deb http://no.example x\ndeb [signed-by=/a b arch=amd64] http://a.example/debian stable main\ndeb-src\thttps://b.example/d stable main # x\ndeb cdrom:[x]/ y\n"}, [("archives", "http://a.example/debian"), ("archives", "https://b.example/d")]),
    ("apt", {"/etc/apt/sources.list.d/x.sources": "Types: deb\nURIs: http://a.example/d\n https://b.example/d\nSuites: s\n\nEnabled: no\nURIs: http://off.example\n"}, [("archives", "http://a.example/d"), ("archives", "https://b.example/d")]),
    ("apt", {"/etc/apt/sources.list.d/x.list.disabled": "deb http://no.example x\n"}, []),
    ("crates", {".cargo/config.toml": '[source.crates-io]\nreplace-with = "corp"\n[source.corp]\nregistry = "sparse+https://a.example/index/"\n'}, [("index", "https://a.example/index/")]),
    ("crates", {".cargo/registry/index/index.example-0123456789abcdef/.cargo-index-lock": ""}, [("index", "https://index.example")]),
    ("crates", {".cargo/config.toml": "source = 3\n"}, []),
    ("go-modules", {"/usr/local/go/go.env": "# x\nGOPROXY=https://p.example,direct\nGOSUMDB=sum.example\n"}, [("proxy", "https://p.example"), ("checksums", "https://sum.example")]),
    ("go-modules", {"/usr/local/go/go.env": "GOPROXY=https://p.example\nGOSUMDB=s.example\n", ".config/go/env": "GOPROXY=https://a.example|https://b.example\nGOSUMDB=off\n"}, [("proxy", "https://a.example"), ("proxy", "https://b.example")]),
    ("go-modules", {".config/go/env": "GOSUMDB=sum.example+033de+Ac4 https://sum.corp.example\n"}, [("checksums", "https://sum.corp.example")]),
    ("rubygems", {".gemrc": ":sources:\n- https://a.example/\n"}, [("sources", "https://a.example/")]),
    ("rubygems", {"/usr/lib/ruby/3.1.0/rubygems/defaults.rb": "  def self.default_sources\n    %w[https://built-in.example/]\n  end\n"}, [("sources", "https://built-in.example/")]),
    ("maven-central", {".m2/settings.xml": "<settings xmlns='urn:x'><mirrors><mirror><mirrorOf>jboss</mirrorOf><url>https://no.example</url></mirror><mirror><mirrorOf>*,!x</mirrorOf><url>https://a.example/m</url></mirror></mirrors></settings>"}, [("repository", "https://a.example/m")]),
    ("maven-central", {"/etc/maven/settings.xml": "<settings><mirrors><mirror><mirrorOf>external:http:*</mirrorOf><url>http://0.0.0.0/</url><blocked>true</blocked></mirror></mirrors></settings>"}, []),
    ("conda", {".condarc": "channel_alias: https://c.example\nchannels: [forge, https://x.example/y]\n"}, [("channels", "https://c.example/forge"), ("channels", "https://x.example/y")]),
    ("conda", {"/opt/conda/lib/python3.12/site-packages/conda/base/constants.py": 'DEFAULT_CHANNELS_UNIX: Final = (\n    "https://d.example/main",\n    "https://d.example/r",\n)\n'}, [("channels", "https://d.example/main"), ("channels", "https://d.example/r")]),
    ("docker-hub", {"/etc/docker/daemon.json": '{"registry-mirrors": ["https://m.example"]}'}, [("registry", "https://m.example")]),
    ("docker-hub", {"/etc/docker/daemon.json": "[1]"}, []),
    ("ghcr", {}, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "files", "expected"), CONFIGURED, ids=[f"{row[0]} {[*row[1]]}" for row in CONFIGURED]
)
def test_client_configuration_is_read(preset, files, expected, host):
    for path, text in files.items():
        put(host, path, text)
    assert configured(host, preset) == expected


def test_built_in_defaults_of_pip_and_maven_are_read(host, monkeypatch):
    monkeypatch.setattr("enforcer.presets.pip.sysconfig.get_path", lambda _: str(host.home))
    wheel = put(host, "/usr/share/python-wheels/pip-1.whl", "")
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(
            "pip/_internal/models/index.py",
            'PyPI = PackageIndex("https://built-in.example/", file_storage_domain="f")\nimport os; os._exit(3)\n',
        )
    assert configured(host, "pip") == [("index", "https://built-in.example/simple")]
    jar = put(host, "/usr/share/maven/lib/maven-model-builder-3.x.jar", "")
    with zipfile.ZipFile(jar, "w") as file:
        file.writestr(
            "org/apache/maven/model/pom-4.0.0.xml",
            "<project><repositories><repository><url>https://m.example/m2</url></repository></repositories></project>",
        )
    assert configured(host, "maven-central") == [("repository", "https://m.example/m2")]


def test_file_writable_by_a_task_is_ignored(host, tmp_path):
    """Named table: what is done to the user's pip.conf, and why it is not read then."""
    file = put(host, ".config/pip/pip.conf", "[global]\nindex-url = https://evil.example/simple\n")
    other = put(host, ".npmrc", "registry=https://a.example\n")

    def told(do, undo):
        do()
        host.notes.clear()
        text = host.text(file)
        undo()
        return text, " ".join(host.notes).replace(str(tmp_path), "")

    inside = tmp_path / "work/pip.conf"

    def link():
        file.rename(inside)
        file.symlink_to(inside)

    def unlink():
        file.unlink()
        inside.rename(file)

    table = {
        "others can write it": (lambda: file.chmod(0o646), lambda: file.chmod(0o644), "can be written by others"),
        "its group can": (lambda: file.chmod(0o664), lambda: file.chmod(0o644), "can be written by others"),
        "a directory above is everybody's": (lambda: file.parent.chmod(0o777), lambda: file.parent.chmod(0o755), "/home/.config/pip can be written by others"),
        "it is a link into the workspace": (link, unlink, "it lies in the workspace /work"),
    }  # fmt: skip
    if os.geteuid() == 0:
        table["it is somebody's"] = (
            lambda: os.chown(file, 4711, 0),
            lambda: os.chown(file, 0, 0),
            "belongs to uid 4711",
        )
    for name, (do, undo, why) in table.items():
        text, notes = told(do, undo)
        assert text is None, name
        assert why in notes, name
    assert host.text(file), "and it is believed as it was"
    assert host.text(other)


def test_irregular_or_oversized_file_is_ignored(host, monkeypatch):
    os.mkfifo(host.home / "fifo")
    (host.home / "loop").symlink_to("loop")
    put(host, "big", "x" * 100)
    monkeypatch.setattr(client, "_LARGEST_FILE", 99)
    assert [host.data(host.home / name) for name in ("fifo", "loop", "big", "missing")] == [None] * 4
    assert len(host.notes) == 3


def test_project_configuration_and_environment_are_ignored(host, tmp_path, monkeypatch, registry):
    evil = "https://evil.example/simple"
    (tmp_path / "work/pip.conf").write_text(f"[global]\nindex-url={evil}\n")
    (tmp_path / "work/.npmrc").write_text(f"registry={evil}\n")
    monkeypatch.chdir(tmp_path / "work")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "npm_config_registry", "GOPROXY"):
        monkeypatch.setenv(name, evil)
    for name in ("PIP_CONFIG_FILE", "NPM_CONFIG_USERCONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "work/pip.conf"))
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    for preset in CLIENTS:
        assert not [url for _, url in configured(host, preset) if "evil" in url]


def test_ignored_variables_are_named(host, monkeypatch, registry):
    monkeypatch.setenv("GOPROXY", "https://evil.example")
    result = discover(CLIENTS["go-modules"], host, registry.web(), {})
    assert any("GOPROXY is set in the environment, which is not read" in note for note in result.notes)


def test_unknown_user_is_an_error(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 4242424)
    with pytest.raises(HostError, match="uid 4242424 is no user of this machine"):
        client.this_machine([])


def test_registries_are_discovered_without_names_in_the_code():
    """Where pip is installed beside us its default is found, without a request."""
    if importlib.util.find_spec("pip") is None:
        harness.missing("pip")
    from pip._internal.models.index import PyPI

    from enforcer.presets.pip import _built_in

    assert [setting.url for setting in _built_in(client.this_machine([]))] == [PyPI.simple_url]


@given(st.text(max_size=200))
def test_arbitrary_sources_are_parsed(text):
    assert all(map(str, [*one_line(text), *stanzas(text)]))
