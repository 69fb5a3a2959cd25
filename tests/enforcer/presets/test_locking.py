"""Discovery of hosts: what is requested from a registry, and what of its answer is locked."""

import ssl
from time import sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer.presets import fetch
from enforcer.presets.client import find_common_base
from enforcer.presets.fetch import FetchError
from enforcer.presets.locking import CLIENTS, discover
from enforcer.presets.pip import file_urls
from rules.loading.preset_locks import Origin
from tests.enforcer.presets.registry_lab import JSON, PIP, PRIVATE, found, put
from tests.lab.certificates import Authority


def test_index_names_the_hosts_of_its_files(host, registry):
    put(host, "/etc/pip.conf", PIP)
    registry.page(
        "/simple/pip/",
        {"files": [{"url": "https://files.example/ab/pip-1.0-py3-none-any.whl"}, {"url": "/simple/x/pip-1.tar.gz"}]},
    )
    assert found(host, "pip", registry.web()) == {
        "index": ["http://pypi.example:8000/simple"],
        "files": ["https://files.example", "http://pypi.example:8000/simple"],
    }
    assert registry.requests == [("pypi.example:8000", "/simple/pip/")]


def test_html_index_is_parsed_for_file_links(host, registry):
    put(host, "/etc/pip.conf", PIP)
    page = "<a href='https://logo.example/'>x</a><a href='../../packages/pip-1.0.tar.gz#sha256=x'>pip</a>"
    registry.page("/simple/pip/", page, kind="text/html")
    assert found(host, "pip", registry.web())["files"] == ["http://pypi.example:8000"]


def test_other_repositories_of_a_mirror_are_not_allowed(host, registry):
    put(host, "/etc/pip.conf", "[global]\nindex-url = http://n.example/repository/pypi/simple\n")
    registry.page("/repository/pypi/simple/pip/", {"files": [{"url": "../../packages/pip/1.0/pip-1.0.whl"}]})
    put(host, ".npmrc", "registry=http://n.example/repository/npm/\n")
    registry.page(
        "/repository/npm/abbrev",
        {"versions": {"1": {"dist": {"tarball": "http://n.example/repository/npm/abbrev/-/abbrev-1.tgz"}}}},
    )
    assert found(host, "pip", registry.web()) == {
        "index": ["http://n.example/repository/pypi/simple"],
        "files": ["http://n.example/repository/pypi"],
    }
    assert found(host, "npm", registry.web()) == {
        "registry": ["http://n.example/repository/npm"],
        "tarballs": ["http://n.example/repository/npm"],
    }


def test_crate_and_container_registries_name_their_hosts(host, registry):
    put(
        host,
        ".cargo/config.toml",
        '[source.crates-io]\nreplace-with="c"\n[source.c]\nregistry="sparse+http://i.example/idx/"\n',
    )
    registry.page(
        "/idx/config.json", {"dl": "http://d.example/crates/{crate}/{version}/download", "api": "http://a.example"}
    )
    assert found(host, "crates", registry.web()) == {
        "index": ["http://i.example/idx"],
        "files": ["http://d.example/crates"],
    }
    registry.page("/v2/", b"", status=401, WWW_Authenticate='Bearer realm="https://auth.example/token",service="r"')
    assert found(host, "ghcr", registry.web(), registry=["http://r.example"]) == {
        "registry": ["http://r.example"], "token": ["https://auth.example/token"], "layers": ["http://r.example"],
    }  # fmt: skip


def test_redirect_target_is_locked_too(host, registry):
    put(host, "/etc/pip.conf", PIP)
    registry.page("/simple/pip/", b"", status=302, Location="http://other.example/new/pip/")
    registry.page("/new/pip/", {"files": [{"url": "http://other.example/f/pip-1.whl"}]})
    assert found(host, "pip", registry.web())["index"] == [
        "http://pypi.example:8000/simple",
        "http://other.example/new",
    ]


HOSTILE = [
    ("names a host inside", {}, {"inside.example": PRIVATE}, {"files": [{"url": "https://inside.example/x.whl"}]}, "inside.example leads to 10.20.0.7 (private use), and the registry that names it is public"),
    ("names loopback", {}, {"l.example": "127.0.0.1"}, {"files": [{"url": "https://l.example/x.whl"}]}, "l.example leads to 127.0.0.1 (loopback), which no task is to reach"),
    ("names metadata", {}, {}, {"files": [{"url": "https://169.254.169.254/x.whl"}]}, "169.254.169.254 leads to 169.254.169.254 (cloud metadata), which no task is to reach"),
    ("names metadata in disguise", {}, {}, {"files": [{"url": "https://2852039166/x.whl"}]}, "(cloud metadata), which no task is to reach"),
    ("names this host", {}, {"host.exeat.internal": None}, {"files": [{"url": "https://host.exeat.internal/x.whl"}]}, "host.exeat.internal can't be looked up: Name or service not known"),
    ("names a pattern", {}, {}, {"files": [{"url": "https://*.example/x.whl"}]}, "names a host that can't be locked"),
    ("names somebody's password", {}, {}, {"files": [{"url": "https://u:p@f.example/x.whl"}]}, "may not contain a user or a password"),
    ("names a file", {}, {}, {"files": [{"url": "file:///etc/x.whl"}]}, "names a host that can't be locked"),
    ("names a hundred hosts", {}, {}, {"files": [{"url": f"https://h{n}.example/x.whl"} for n in range(100)]}, "names more than 16 hosts"),
    ("is no list", {}, {}, {"files": 3}, "not what PEP 691 says"),
    ("is nested", {}, {}, b"[" * 100_000, "not what PEP 691 says"),
    ("redirects inside", {"status": 302, "Location": "http://inside.example/"}, {"inside.example": PRIVATE}, b"", "inside.example leads to 10.20.0.7 (private use), and the registry that names it is public"),
    ("redirects to metadata", {"status": 307, "Location": "http://169.254.169.254/latest/"}, {}, b"", "(cloud metadata), which no task is to reach"),
    ("redirects to a file", {"status": 302, "Location": "file:///etc/passwd"}, {}, b"", "must be a URL that begins with `https://` or `http://`"),
    ("redirects for ever", {"status": 302, "Location": "/simple/pip/"}, {}, b"", "redirects more than 3 times"),
    ("wants credentials", {"status": 401}, {}, b"", "wants credentials (401), which are not read here"),
    ("has nothing", {"status": 404}, {}, b"", "shows no files of pip, setuptools, six"),
]  # fmt: skip


@pytest.mark.parametrize("row", HOSTILE, ids=[row[0] for row in HOSTILE])
def test_index_with_foreign_links_locks_nothing(row, host, registry):
    _, headers, registry.addresses, body, why = row
    put(host, "/etc/pip.conf", PIP)
    registry.page("/simple/pip/", body, **headers)
    assert why in found(host, "pip", registry.web())


def test_endless_response_is_aborted(host, registry, monkeypatch):
    put(host, "/etc/pip.conf", PIP)
    monkeypatch.setattr(fetch, "_LARGEST", 1 << 20)
    registry.page("/simple/pip/", (b"x" * 65536 for _ in iter(int, 1)))
    assert "answers with more than 1 MiB" in found(host, "pip", registry.web())


def test_slow_response_is_aborted(host, registry, monkeypatch):
    put(host, "/etc/pip.conf", PIP)
    monkeypatch.setattr(fetch, "_WHOLE", 0.2)
    registry.page("/simple/pip/", (sleep(0.01) or b"x" for _ in iter(int, 1)))
    assert "takes more than 0.2 seconds" in found(host, "pip", registry.web())


def test_internal_mirror_is_locked_with_its_addresses(host, registry):
    put(host, "/etc/pip.conf", PIP)
    registry.addresses = {"pypi.example": PRIVATE, "files.example": "10.20.0.8"}
    registry.page("/simple/pip/", {"files": [{"url": "http://files.example/x.whl"}]})
    places = discover(CLIENTS["pip"], host, registry.web(), {}).places
    assert {place: [list(map(str, entry.resolves_to)) for entry in entries] for place, entries in places.items()} == {
        "index": [["10.20.0.7/32"]], "files": [["10.20.0.8/32"]],
    }  # fmt: skip


def test_mirror_on_loopback_is_refused(host, registry):
    put(host, "/etc/pip.conf", "[global]\nindex-url = http://localhost:3141/simple\n")
    registry.addresses = {"localhost": "127.0.0.1"}
    assert "localhost leads to 127.0.0.1 (loopback), which no task is to reach" in found(host, "pip", registry.web())


def test_https_is_verified_and_never_downgraded(host, registry):
    authority = Authority.make()
    pem = host.home / "leaf.pem"
    pem.write_bytes(authority.leaf("pypi.example"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    registry.server.socket = server.wrap_socket(registry.server.socket, server_side=True)
    trusting = ssl.create_default_context(cadata=authority.pem().decode())
    put(host, "/etc/pip.conf", "[global]\nindex-url = https://pypi.example/simple\n")
    registry.page("/simple/pip/", {"files": [{"url": "x/pip-1.whl"}]})
    assert found(host, "pip", registry.web(trusting))["index"] == ["https://pypi.example/simple"]
    assert "CERTIFICATE_VERIFY_FAILED" in found(host, "pip", registry.web())
    registry.page("/simple/pip/", {"files": [{"url": "http://pypi.example/pip-1.whl"}]})
    assert "names http://pypi.example, which is not https" in found(host, "pip", registry.web(trusting))
    registry.page("/simple/pip/", b"", status=302, Location="http://pypi.example/")
    assert "redirects to http://pypi.example/, which is not https" in found(host, "pip", registry.web(trusting))
    put(host, "/etc/pip.conf", "[global]\nindex-url = https://wrong.example/simple\n")
    assert "CERTIFICATE_VERIFY_FAILED" in found(host, "pip", registry.web(trusting))


def test_credentials_are_never_locked_or_printed(host, registry):
    put(host, "/etc/pip.conf", "[global]\nindex-url = http://user:s3cret@pypi.example/simple?x=s3cret\n")
    registry.page("/simple/pip/", {"files": [{"url": "x/pip-1.whl"}]})
    result = discover(CLIENTS["pip"], host, registry.web(), {})
    assert "s3cret" not in repr(result)
    assert result.notes == ("http://pypi.example: the user and password in its URL are not kept",)


def test_manual_entries_replace_discovery(host, registry):
    put(host, "/etc/pip.conf", PIP)
    registry.addresses = {"new.example": None}
    given = {"index": ["https://a.example/s"], "files": ["https://b.example", "https://new.example"]}
    assert found(host, "pip", registry.web(), **given) == given
    assert registry.requests == []
    registry.page("/simple/pip/", {"files": [{"url": "https://files.example/x.whl"}]})
    assert found(host, "pip", registry.web(), files=["https://b.example"]) == {
        "index": ["http://pypi.example:8000/simple"],
        "files": ["https://b.example"],
    }


def test_missing_client_names_the_remedy(host, registry):
    assert (
        found(host, "ghcr", registry.web())
        == "nothing on this machine says where it is; lock it by hand: `exeat presets lock ghcr=https://HOST`"
    )


@given(st.binary(max_size=300), st.sampled_from([JSON, "text/html", ""]))
def test_arbitrary_response_is_parsed_or_refused(body, kind):
    try:
        urls = file_urls(body, kind)
    except FetchError:
        return
    assert all(isinstance(url, str) for url in urls)


@given(st.lists(st.text(alphabet="/ab.%*", max_size=12).map("/{}".format), min_size=1, max_size=4))
def test_common_path_prefix_can_be_locked(paths):
    base = find_common_base(paths)
    assert all(path.startswith(base + "/") for path in paths) or not base
    Origin.parse("https://x.example" + base)
