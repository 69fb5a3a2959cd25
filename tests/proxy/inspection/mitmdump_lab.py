"""A real mitmdump that loads the addon, with its own hosts file, destinations and broken hooks."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proxy.inspection.clients import curl
from tests.support.harness import whole_lines
from tests.support.ports import free_port
from tests.support.waiting import wait_until

ADDON = Path(__file__).resolve().parents[3] / "proxy" / "addon.py"
MITMDUMP = Path(sys.executable).parent / "mitmdump"
PATIENCE = 90  # seconds: mitmdump imports many modules, which takes long on a busy machine

# A second addon for tests. It resolves names from a file in place of /etc/hosts, reads the original destination of
# a transparent connection from another in place of the kernel's NAT table, and makes the hook named in a third raise.
TEST_ADDON = """
import sys
from pathlib import Path
from mitmproxy import platform
HERE = Path({here!r})
sys.path.append({root!r})
import proxy.dns.lookup, proxy.inspection.standalone as standalone
from proxy.dns.lookup import Lookup, DnsLookupError

class NoNameServers:
    async def ask(self, name, kind):
        raise DnsLookupError(f"{{name}} has no {{kind}}")

standalone.Lookup = lambda: Lookup(proxy.dns.lookup.HostsFile(str(HERE / "hosts")), NoNameServers)
platform.original_addr = lambda sock: tuple(eval((HERE / "original").read_text()))

class TestAddon:
    def running(self):
        from mitmproxy import ctx
        exeat = next(a for a in walk(ctx.master.addons.chain) if type(a).__name__ == "Exeat")
        kind, connection_of = type(exeat), type(exeat).connection_of
        def raising(self, client):
            hook = sys._getframe(1).f_code.co_name
            if (HERE / "broken").read_text() == hook:
                raise RuntimeError("on purpose")
            return connection_of(self, client)
        kind.connection_of = raising
        (HERE / "ready").touch()

def walk(chain):
    for addon in chain:
        yield addon
        yield from walk(getattr(addon, "addons", ()))

addons = [TestAddon()]
"""


class Mitmdump:
    """A running mitmdump with the addon."""

    def __init__(self, directory, origins):
        self.directory = directory
        self.origins = origins
        self.hosts({})
        self.break_hook("")
        self.set_original_destination("127.0.0.1", 1)
        (directory / "ca.pem").write_bytes(origins.authority.pem())
        (directory / "test_addon.py").write_text(TEST_ADDON.format(here=str(directory), root=str(ADDON.parent.parent)))
        (directory / "before.py").write_text(
            f"import sys\nsys.path.insert(0, {str(ADDON.parent.parent)!r})\n"
            "from tests.proxy.loopback import let_out\nlet_out(setattr)\n"
        )
        self.rules = directory / "rules.yaml"
        self.rules.write_text("version: 1\nname: t\nrules: []\n")
        self.process = None

    def hosts(self, names):
        (self.directory / "hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))

    def break_hook(self, hook):
        (self.directory / "broken").write_text(hook)

    def set_original_destination(self, *address):
        (self.directory / "original").write_text(repr(address))

    def start(self, rules, *modes):
        self.rules.write_text(f"version: 1\nname: t\nrules: {rules}\n")
        self.ports = []
        words = []
        for mode in modes:
            self.ports.append(free_port())
            words += ["--mode", f"{mode}@127.0.0.1:{self.ports[-1]}"]
        self.process = subprocess.Popen(
            [MITMDUMP, "-q", *words, "-s", self.directory / "before.py", "-s", ADDON, "-s", self.directory / "test_addon.py",
             "--set", f"exeat_rules={self.rules}", "--set", f"exeat_journal={self.directory / 'journal'}",
             "--set", f"confdir={self.directory / 'conf'}",
             "--set", f"ssl_verify_upstream_trusted_ca={self.directory / 'ca.pem'}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
        )  # fmt: skip
        for port in self.ports:
            wait_until(lambda port=port: self.listens(port), seconds=PATIENCE)
        wait_until((self.directory / "ready").exists, seconds=PATIENCE)  # mitmproxy calls `running` of this addon last

    def listens(self, port):
        assert self.process.poll() is None, self.process.stdout.read().decode()
        with contextlib.suppress(ConnectionError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    def events(self, kind):
        lines = [line for file in (self.directory / "journal").rglob("*.jsonl") for line in whole_lines(file)]
        return [event for line in lines if kind.encode() in line and (event := json.loads(line))["kind"] == kind]

    def curl(self, *words, index=0):
        ca = self.directory / "conf" / "mitmproxy-ca-cert.pem"
        return curl("--cacert", ca, "-x", f"http://127.0.0.1:{self.ports[index]}", *words)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        if self.process:
            self.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def mitmdump(tmp_path_factory, origins):
    """One mitmdump in both modes for all tests of a module, because it starts slowly."""
    lab = Mitmdump(tmp_path_factory.mktemp("dump"), origins)
    lab.tls = origins.web("good.example")
    lab.plain = origins.web("good.example", tls=False)
    lab.hosts({"good.example": "127.0.0.1", "inside.example": "10.0.0.1"})
    (lab.directory / "journal").mkdir()
    ports = f"[{lab.tls.port}/tls, {lab.plain.port}/http]"
    lab.start(
        f"""
  - {{id: good, to: good.example, resolves_to: [127.0.0.1/32], ports: {ports}, http: {{methods: [GET, POST]}}, action: allow}}
  - {{id: kept, to: good.example, resolves_to: [127.0.0.1/32], ports: {ports}, http: {{methods: [POST], query: {{kept: present}}}}, scan: block, action: allow}}
  - {{id: code, to: good.example, ports: {ports}, git: {{repos: ["**"], push: ["refs/**"]}}, action: allow}}
  - {{id: asked, to: good.example, ports: {ports}, http: {{methods: [PATCH]}}, action: ask}}
  - {{id: inside, to: inside.example, ports: {ports}, action: allow}}
  - {{id: unknown, to: unknown.example, ports: {ports}, action: allow}}
""",
        "regular",
        "transparent",
    )
    yield lab
    lab.stop()
