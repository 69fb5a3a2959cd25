"""A server elsewhere is spoken to under TLS with its certificate verified, and over nothing else."""

import asyncio
import datetime as dt
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.approvals.postgres_store import PostgresStore
from proxy.approvals.store import StoreError

SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # PostgreSQL's protocol, "SSLRequest"


def certificate(directory, name):
    """A certificate of its own for a name, with its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(made.public_bytes(pem))
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(plain)
    return str(directory / "cert.pem"), str(directory / "key.pem")


@pytest.mark.parametrize(
    ("answer", "name", "trusted", "said"),
    [
        (b"N", "localhost", True, "reject"),
        (b"S", "localhost", False, "its certificate isn't to be trusted"),
        (b"S", "other.example", True, "its certificate isn't to be trusted"),
        (b"S", "localhost", True, ""),
    ],
    ids=["no TLS", "not trusted", "another's name", "as it should be"],
)
def test_postgres_server_must_prove_its_identity(tmp_path, answer, name, trusted, said):
    cert, key = certificate(tmp_path, name)
    came = []

    async def serve(reader, writer):
        came.append(await reader.readexactly(8))
        writer.write(answer)
        try:
            if answer == b"S":
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(cert, key)
                await writer.start_tls(context)
            came.append(await reader.read(1000))
        except (OSError, ssl.SSLError):
            came.append(b"")
        finally:
            writer.close()

    async def scenario():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        store = PostgresStore(f"postgresql://exeat@localhost:{port}/x", "hunter2", cert if trusted else None)
        with pytest.raises(StoreError) as caught:
            await store.open(lambda _: None)
        server.close()
        await server.wait_closed()
        return str(caught.value)

    why = asyncio.run(scenario())
    assert said in why
    assert came[0] == SSL_REQUEST
    startup = b"".join(came[1:])
    assert (b"user\0exeat\0" in startup) == (not said), "and nobody else hears who we are"
