"""The CA: kept to ourselves or refused, made once, and its leaves accepted by strict clients."""

import errno
import os
import re
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxy.certificates import authority, authority_file
from proxy.certificates.authority import AuthorityError, load_or_create

KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def ca():
    return authority.create()


def handshake(ca, leaf_host, asked, flags=ssl.VERIFY_X509_STRICT):
    """Run a TLS handshake in memory against a leaf; return the server side."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.verify_flags |= flags
    client_context.load_verify_locations(cadata=ca.certificate_pem.decode())
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    descriptor = os.memfd_create("leaf")
    leaf = ca.sign(leaf_host, KEY.public_key())
    os.write(descriptor, leaf.public_bytes(Encoding.PEM) + authority._private_pem(KEY))
    server_context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=asked)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in client, server:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.getpeercert()


@pytest.mark.parametrize(
    "host",
    ["example.com", "a" * 63 + "." + "b" * 63 + ".example", "198.51.100.7", "2001:db8::1", "_dmarc.example.com"],
)
def test_strict_client_accepts_a_leaf_for_its_host(ca, host):
    assert handshake(ca, host, host)["issuer"] == ((("organizationName", "Exeat"),), (("commonName", _cn(ca)),))


def _cn(ca):
    return x509.load_pem_x509_certificate(ca.certificate_pem).subject.rfc4514_string().split(",")[0].removeprefix("CN=")


@pytest.mark.parametrize("asked", ["other.example", "sub.example.com", "198.51.100.7"])
def test_leaf_is_valid_for_its_host_only(ca, asked):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        handshake(ca, "example.com", asked)


def test_leaves_never_use_the_cas_key(ca):
    leaf = ca.sign("example.com", KEY.public_key())
    root = x509.load_pem_x509_certificate(ca.certificate_pem)
    leaf.verify_directly_issued_by(root)
    assert leaf.public_key() == KEY.public_key() != root.public_key()


@pytest.mark.parametrize("host", ["example.com", "198.51.100.7"])
def test_leaf_cannot_sign_and_expires_in_days(ca, host):
    leaf = ca.sign(host, KEY.public_key())
    said = leaf.extensions
    assert said.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert said.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False
    assert list(said.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert [str(name.value) for name in said.get_extension_for_class(x509.SubjectAlternativeName).value] == [host]
    assert leaf.not_valid_after_utc < datetime.now(UTC) + timedelta(days=7)


def test_bundle_is_the_hosts_roots_and_the_ca(ca):
    root = authority.create().certificate_pem
    bundle = ca.bundle(root.rstrip(b"\n"))
    assert x509.load_pem_x509_certificates(bundle) == [
        x509.load_pem_x509_certificate(root),
        x509.load_pem_x509_certificate(ca.certificate_pem),
    ]
    assert b"PRIVATE" not in bundle
    assert ca.bundle(b"") == ca.certificate_pem


def test_ca_is_made_once_and_private(tmp_path):
    directory = tmp_path / "new" / "ca"
    first = load_or_create(directory)
    assert load_or_create(directory).to_pem() == first.to_pem()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [entry.name for entry in directory.iterdir()] == ["ca.pem"]
    assert stat.S_IMODE((directory / "ca.pem").stat().st_mode) == 0o600
    assert authority.Authority.from_pem(first.to_pem()).certificate_pem == first.certificate_pem


def test_simultaneous_starts_agree_on_one_ca(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: load_or_create(tmp_path / "ca").to_pem(), range(16)))
    assert len(set(made)) == 1


def test_interrupted_write_does_not_block(tmp_path):
    load_or_create(tmp_path / "ca")
    (tmp_path / "ca" / "ca.pem").rename(tmp_path / "ca" / ".ca.pem.new")
    load_or_create(tmp_path / "ca")
    assert [entry.name for entry in (tmp_path / "ca").iterdir()] == ["ca.pem"]


def test_ca_is_renewed_before_it_expires(tmp_path, monkeypatch):
    monkeypatch.setattr(authority, "LIFE", timedelta(days=29))
    old = load_or_create(tmp_path / "ca")
    monkeypatch.undo()
    assert load_or_create(tmp_path / "ca").expires > old.expires


def loose_file(directory):
    (directory / "ca.pem").chmod(0o640)
    return "is open to others (mode 640)"


def loose_directory(directory):
    directory.chmod(0o755)
    return "is open to others (mode 755)"


def linked_file(directory):
    (directory / "ca.pem").rename(directory.parent / "elsewhere")
    (directory / "ca.pem").symlink_to(directory.parent / "elsewhere")
    return "can't be used"


def second_name(directory):
    os.link(directory / "ca.pem", directory.parent / "copy")
    return "is not a plain file of its own"


def a_fifo(directory):
    (directory / "ca.pem").unlink()
    os.mkfifo(directory / "ca.pem", 0o600)
    return "is not a plain file of its own"


def garbage(directory):
    (directory / "ca.pem").write_bytes(b"\0 not PEM")
    return "is damaged"


def two_halves(directory):
    mine, other = authority.create(), authority.create()
    (directory / "ca.pem").write_bytes(mine.to_pem().split(b"-----BEGIN CERT")[0] + other.certificate_pem)
    return "don't belong together"


@pytest.mark.parametrize(
    "spoil",
    [loose_file, loose_directory, linked_file, second_name, a_fifo, garbage, two_halves],
    ids=lambda f: f.__name__,
)
def test_ca_writable_by_others_is_refused(tmp_path, spoil):
    directory = tmp_path / "ca"
    load_or_create(directory)
    said = spoil(directory)
    with pytest.raises(AuthorityError, match=re.escape(said)) as refusal:
        load_or_create(directory)
    assert "\n" not in str(refusal.value)


def test_ca_of_another_owner_is_refused(tmp_path, monkeypatch):
    load_or_create(tmp_path / "ca")
    owner = os.geteuid()
    monkeypatch.setattr(authority_file.os, "geteuid", lambda: owner + 1)
    with pytest.raises(AuthorityError, match=f"belongs to uid {owner}, not to uid {owner + 1}"):
        load_or_create(tmp_path / "ca")


def test_unwritable_directory_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorityError, match="can't be used: Not a directory"):
        load_or_create(tmp_path / "file" / "ca")


def test_full_disk_is_one_sentence_and_leaves_no_partial_file(tmp_path, monkeypatch):
    load_or_create(tmp_path / "ca")
    (tmp_path / "ca" / "ca.pem").unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(authority_file.os, "fsync", full)
    with pytest.raises(AuthorityError, match=r"can't be used: No space left on device; free some room$"):
        load_or_create(tmp_path / "ca")
    monkeypatch.undo()
    assert list((tmp_path / "ca").iterdir()) == []
