"""HTTP by hand, in the clear, as `nc -N` sends it: an empty line before it, and the client's side ended behind it."""

import json
import socket
import sys


def main(host: str) -> None:
    requests = {
        "half-closed": f"GET /echo HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "behind an empty line": f"\r\nGET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
        "of the server": f"OPTIONS * HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
    }
    found = {}
    for name, request in requests.items():
        with socket.create_connection((host, 80), 20) as connection:
            connection.sendall(request.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        found[name] = answer.partition(b"\r\n")[0].decode()
    print(json.dumps(found))


main(*sys.argv[1:])
