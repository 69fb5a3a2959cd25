"""As much of an IMAP server as greets, over TLS: it speaks first. Run as `python -m tests.clients.heavy.imap_server LEAF PORT`."""

import socketserver
import ssl
import sys


class Imap(socketserver.StreamRequestHandler):
    """Greets, and says yes to everything."""

    def handle(self) -> None:
        """Serve one client."""
        self.wfile.write(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")
        for line in self.rfile:
            tag, _, words = line.partition(b" ")
            if words.upper().startswith(b"CAPABILITY"):
                self.wfile.write(b"* CAPABILITY IMAP4rev1\r\n")
            self.wfile.write(tag + b" OK done\r\n")


class Server(socketserver.ThreadingTCPServer):
    """One whose clients fail by themselves."""

    allow_reuse_address = daemon_threads = True

    def handle_error(self, *_words: object) -> None:
        """Say nothing."""


def main(leaf: str, port: str) -> None:
    """Serve for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    server = Server(("0.0.0.0", int(port)), Imap)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
