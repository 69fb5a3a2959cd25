"""IMAPS, whose server speaks first: passed on where a rule says splice, refused with the reason where TLS is read."""

from tests.clients.clients_lab import PYTHON

PORT = 993
RULES = f"""
version: 1
name: mail
rules:
  - {{id: unread, to: mail.open.example, ports: [{PORT}/tls], tls: splice, action: allow}}
  - {{id: read, to: read.open.example, ports: [{PORT}/tls], action: allow}}
"""
PROGRAM = """
import imaplib, ssl, sys
try:
    with imaplib.IMAP4_SSL(sys.argv[1], ssl_context=ssl.create_default_context(), timeout=30) as client:
        print(client.welcome.decode(), client.noop())
except imaplib.IMAP4.error as error:
    print("error", error)
"""


def test_imaplib(world):
    world.serve(
        "tests.clients.heavy.imap_server", world.leaf("mail.open.example", "read.open.example"), PORT, port=PORT
    )
    tried = world.run(
        [PYTHON, "-c", PROGRAM, "mail.open.example"],
        [PYTHON, "-c", PROGRAM, "read.open.example"],
        rules=world.place.rules(RULES, "mail.yaml"),
    )
    unread, read = tried.said
    assert "ready" in unread.out, unread
    assert "Blocked by Exeat: protocol_mismatch" in read.out, read
    (decided,) = tried.journal.of(kind="request.decided")
    assert (decided["outcome"], decided["reason"]) == ("blocked", "protocol_mismatch")
