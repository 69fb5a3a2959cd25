"""The task of a trace: make one HTTPS request to each name, and print when each connection began and ended.

Each name is visited twice and the second visit counts: the first one fills what a worker keeps for all connections.
"""

import json
import socket
import ssl
import sys
import time

_QUIET = 0.3  # seconds around each visit in which the gate has nothing else to do


def visit(name):
    """Return when the visit began and ended, in monotonic ns. The name is resolved before it begins."""
    context = ssl.create_default_context()
    address = socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)[0][4]
    time.sleep(_QUIET)
    began = time.monotonic_ns()
    tcp = socket.create_connection(address[:2], timeout=20)
    with tcp, context.wrap_socket(tcp, server_hostname=name) as tls:
        tls.sendall(f"GET /echo HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: tls.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    time.sleep(_QUIET)
    return began, time.monotonic_ns()


print(json.dumps({name: [visit(name), visit(name)][1] for name in sys.argv[1:]}))
