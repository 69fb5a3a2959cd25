"""Test registry on loopback with configurable answers, and a machine with configuration files."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from enforcer.presets.fetch import Web
from enforcer.presets.locking import CLIENTS, discover

PUBLIC, PRIVATE = "8.8.8.8", "10.20.0.7"
JSON = "application/vnd.pypi.simple.v1+json"

PIP = "[global]\nindex-url = http://pypi.example:8000/simple\n"


class RegistryLab:
    """Registry on loopback that serves `pages`; `web` resolves every name to it."""

    def __init__(self):
        self.pages, self.requests, self.addresses = {}, [], {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                registry.requests.append((self.headers["Host"], self.path))
                status, headers, body = registry.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for piece in [body] if isinstance(body, bytes) else body:
                        self.wfile.write(piece)
                except OSError:
                    pass

            def log_message(self, *words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def page(self, path, body, kind=JSON, status=200, **headers):
        text = (
            body
            if isinstance(body, bytes) or not isinstance(body, (dict, str))
            else json.dumps(body).encode()
            if isinstance(body, dict)
            else body.encode()
        )
        self.pages[path] = status, {"Content-Type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}, text

    def web(self, context=None):
        def look_up(host):
            found = self.addresses.get(host, PUBLIC)
            if found is None:
                raise socket.gaierror(-2, "Name or service not known")
            return [found]

        def dial(address, port):
            return socket.create_connection(("127.0.0.1", self.server.server_port), timeout=5)

        return Web(look_up, dial, context)


def put(host, path, text):
    place = host.root / path[1:] if path.startswith("/") else host.home / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def configured(host, preset):
    return [(setting.place, setting.url) for setting in CLIENTS[preset].configured(host)]


def found(host, preset, web, **given):
    result = discover(CLIENTS[preset], host, web, given)
    places = {p: [locked.origin.url for locked in entries] for p, entries in result.places.items()}
    return places if not result.problem else result.problem
