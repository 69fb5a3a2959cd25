"""As much of AWS as its SDK asks for here, over TLS, on one name: S3, DynamoDB and STS, which believe nobody.

It is run among the lab's origins: `python -m tests.clients.heavy.aws_origin PEM PORT ID KEY TOKEN`.
"""

import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.lab.aws import Keys, verdict

STORED: dict[str, bytes] = {}
WHO = (
    b"<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::1:user/us</Arn></GetCallerIdentityResult>"
    b"</GetCallerIdentityResponse>"
)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    keys: Keys

    def do_GET(self) -> None:
        """Take whatever is asked."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size + 2)[:-2]
            self.rfile.readline()
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        said = verdict(self.keys, f"{self.requestline}\r\n{fields}".encode("latin-1"), body)
        path = self.path.partition("?")[0]
        if said != "ok":
            self._answer(403, f"<Error><Code>{said}</Code><Message>{fields}</Message></Error>".encode(), "text/xml")
        elif self.headers.get("x-amz-target"):
            self._answer(200, b'{"TableNames": ["ours"]}', "application/x-amz-json-1.0")
        elif body.startswith(b"Action="):
            self._answer(200, WHO, "text/xml")
        elif self.command == "PUT":
            STORED[path] = _unchunked(body) if "aws-chunked" in self.headers.get("content-encoding", "") else body
            self._answer(200, b"", "text/plain")
        else:
            self._answer(200, STORED.get(path, b""), "text/plain")

    do_PUT = do_POST = do_HEAD = do_GET  # noqa: N815 - the names that it is asked by

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _unchunked(body: bytes) -> bytes:
    """Take AWS's own chunks apart ("Signature calculations: trailing headers", Amazon S3 API reference)."""
    found = b""
    while (line := body.partition(b"\r\n"))[0]:
        size = int(line[0].partition(b";")[0], 16)
        if not size:
            break
        found += line[2][:size]
        body = line[2][size + 2 :]
    return found


if __name__ == "__main__":
    pem, port, *said = sys.argv[1:]
    Handler.keys = Keys(*said)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = ThreadingHTTPServer(("0.0.0.0", int(port)), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
