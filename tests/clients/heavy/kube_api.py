"""A stand-in for a cluster's API: it wants a client certificate, and knows one namespace with one pod.

Run as `python -m tests.clients.heavy.kube_api LEAF CA PORT`.
"""

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

POD = {
    "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "default"},
    "spec": {"containers": [{"name": "web", "image": "web"}]}, "status": {"phase": "Running"},
}  # fmt: skip
KNOWN = {
    "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList", "groupVersion": "v1",
        "resources": [{"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get", "list"]}],
    },
    "/api/v1/namespaces/default/pods": {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [POD]},
    "/api/v1/namespaces/default/pods/web": POD,
}  # fmt: skip


class Api(BaseHTTPRequestHandler):
    """Answers those that have shown a certificate."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer what is known; 401 without a certificate, as a real one does."""
        shown = self.connection.getpeercert()  # type: ignore[attr-defined]  # it is TLS
        found = KNOWN.get(self.path.partition("?")[0])
        status = 401 if not shown else 404 if found is None else 200
        failed = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": "no"}
        body = json.dumps(found if status == 200 else failed).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the library's name

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


def main(leaf: str, authority: str, port: str) -> None:
    """Serve for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    server = ThreadingHTTPServer(("0.0.0.0", int(port)), Api)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
