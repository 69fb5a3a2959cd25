"""What Exeat is measured against: haproxy, squid and mitmdump, each set up as its manual would for the same job.

One thread, one core, no logs (Exeat keeps its journal and metrics on). haproxy is connected to directly; squid and
mitmdump as transparent proxies are: the kernel redirects to them who connects from an address of their own.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import cost, servers, world
from tests.bench.client import Place

_SQUID_CLIENT, _IGNORED_CLIENT, _INSPECTED_CLIENT, _BUMPED_CLIENT = (f"10.77.9.{number}" for number in range(1, 5))
_SQUID_PORT, _IGNORING_PORT, _INSPECTING_PORT, _BUMPING_PORT = 9446, 9447, 9448, 9449
_CERTGEN = "/usr/lib/squid/security_file_certgen"  # squid-openssl's, which makes certificates for others' names

_HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  {option}
frontend gate
  bind {origin}:{tls} backlog 4096
  bind {origin}:{bulk} backlog 4096
  bind {origin}:{hello} backlog 4096
  tcp-request inspect-delay 5s
  tcp-request content reject unless {{ req_ssl_hello_type 1 }}
  tcp-request content reject unless {{ req_ssl_sni -i {name} }}
  use_backend bulk if {{ dst_port {bulk} }}
  use_backend hello if {{ dst_port {hello} }}
  default_backend tls
backend tls
  server origin {origin}:443
backend bulk
  server origin {origin}:9000
backend hello
  server origin {origin}:9001
"""

# splice-auto alone never takes to splicing here (seen by strace: it waits for a stream of full buffers); these do.
_SPLICE = "option splice-auto\n  option splice-request\n  option splice-response"

_SQUID = """
http_port {origin}:{plain}
acl hello at_step SslBump1
acl wanted ssl::server_name {name}
ssl_bump peek hello
{bump}
ssl_bump terminate all
http_access allow all
host_verify_strict off
hosts_file /etc/hosts
cache deny all
cache_mem 0 MB
access_log none
cache_log {state}/squid.log
cache_store_log none
pid_filename none
pinger_enable off
shutdown_lifetime 0 seconds
cache_effective_user nobody
coredump_dir {state}
visible_hostname bench
"""
_SPLICING = """
https_port 0.0.0.0:{port} intercept ssl-bump tls-cert={certificate} generate-host-certificates=off
ssl_bump splice wanted
"""
_BUMPING = """
https_port 0.0.0.0:{port} intercept ssl-bump tls-cert={certificate} generate-host-certificates=on
sslcrtd_program {certgen} -s {state}/certificates -M 16MB
sslcrtd_children 1
tls_outgoing_options cafile={ca}
ssl_bump bump wanted
"""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the origin: how to ask for it, and the processes that its CPU time is counted over."""

    name: str
    tls: Place
    http: Place | None = None
    bulk: Place | None = None
    hello: Place | None = None
    processes: tuple[int, ...] = ()
    sandboxed: bool = False  # asked by the client in the sandbox

    def spent(self) -> int:
        """Nanoseconds of CPU time that this way's processes have used."""
        return sum(cost.spent(pid) for pid in self.processes)


def direct(ca: str) -> Way:
    """Nothing in between."""
    return Way(
        "direct",
        Place(world.SPLICED, world.TLS, ca=ca),
        Place(world.INSPECTED, world.HTTP, tls=False, ca=ca),
        Place(world.SPLICED, world.BULK, ca=ca),
        Place(world.SPLICED, world.HELLO, ca=ca),
    )


def haproxy(work: Path, ca: str, closing: contextlib.ExitStack, *, splice: bool) -> Way:
    """SNI is looked at, then bytes are passed on; with `splice` by that system call."""
    first = 9450 if splice else 9440
    ports = {"tls": first, "bulk": first + 1, "hello": first + 2}
    name = "haproxy, splice" if splice else "haproxy"
    option = _SPLICE if splice else ""
    settings = work / f"haproxy-{ports['tls']}.cfg"
    settings.write_text(_HAPROXY.format(origin=world.ORIGIN, name=world.SPLICED, option=option, **ports))
    pid = _start([servers.find("haproxy"), "-db", "-f", settings], world.ORIGIN, ports["tls"], work, closing)
    return Way(
        name,
        Place(world.SPLICED, ports["tls"], ca=ca),
        bulk=Place(world.SPLICED, ports["bulk"], ca=ca),
        hello=Place(world.SPLICED, ports["hello"], ca=ca),
        processes=(pid,),
    )


def squid(work: Path, ca: str, certificate: bytes, closing: contextlib.ExitStack) -> Way:
    """Peek at the ClientHello, splice."""
    port, source = _SQUID_PORT, _SQUID_CLIENT
    bump = _SPLICING.format(port=port, certificate=_kept(work / "squid.pem", certificate))
    pid = _squid(work / "squid", port, world.SPLICED, bump, closing)
    return Way(
        "squid",
        Place(world.SPLICED, world.TLS, source=source, ca=ca),
        bulk=Place(world.SPLICED, world.BULK, source=source, ca=ca),
        hello=Place(world.SPLICED, world.HELLO, source=source, ca=ca),
        processes=(pid,),
    )


def bumping_squid(work: Path, ca: str, authority: bytes, closing: contextlib.ExitStack) -> Way:
    """Peek at the ClientHello, connect to the server and verify it, then show the client a certificate like its own.

    `authority` is a CA of its own: certificate and key (PEM). Of one process, as Exeat has one worker.
    """
    port, state = _BUMPING_PORT, work / "squid-bumping"
    if not os.path.exists(_CERTGEN):
        raise servers.MissingError(f"`{_CERTGEN}` is missing; `make bench` installs it where apt is")
    state.mkdir()
    shutil.chown(state, "nobody")
    certificate = _kept(work / "squid-ca.pem", authority)
    made = [_CERTGEN, "-c", "-s", f"{state}/certificates", "-M", "16MB"]
    subprocess.run(made, check=True, capture_output=True, user="nobody", timeout=30)
    bump = _BUMPING.format(port=port, certificate=certificate, certgen=_CERTGEN, state=state, ca=ca)
    pid = _squid(state, port, world.INSPECTED, bump, closing)
    place = Place(world.INSPECTED, world.TLS, source=_BUMPED_CLIENT, ca=str(certificate))
    return Way("squid, bumping", place, processes=cost.family(pid))


def _squid(state: Path, port: int, name: str, bump: str, closing: contextlib.ExitStack) -> int:
    if not state.exists():
        state.mkdir()
        shutil.chown(state, "nobody")
    settings, plain = state.with_suffix(".conf"), port + 1000
    settings.write_text(_SQUID.format(plain=plain, name=name, origin=world.ORIGIN, state=state, bump=bump))
    return _start([servers.find("squid"), "-N", "-f", settings], world.ORIGIN, plain, state.parent, closing)


def _kept(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def mitmdump(work: Path, ca: str, closing: contextlib.ExitStack, *, inspect: bool) -> Way:
    """mitmproxy as it comes, transparent and quiet: with interception, or with everything ignored and so passed on."""
    port, source = (_INSPECTING_PORT, _INSPECTED_CLIENT) if inspect else (_IGNORING_PORT, _IGNORED_CLIENT)
    state = work / f"mitmproxy-{port}"
    options = [f"confdir={state}", f"ssl_verify_upstream_trusted_ca={ca}"]
    ignoring = () if inspect else ("--ignore-hosts", ".*")
    argv = [_mitmdump(), "-q", "--mode", "transparent", "--listen-host", "0.0.0.0", "-p", port]
    pid = _start([*argv, *ignoring, *_set(options)], "127.0.0.1", port, work, closing)
    trusted = str(state / "mitmproxy-ca-cert.pem") if inspect else ca
    name = world.INSPECTED if inspect else world.SPLICED
    return Way(
        "mitmdump" if inspect else "mitmdump, ignoring",
        Place(name, world.TLS, source=source, ca=trusted),
        Place(name, world.HTTP, tls=False, source=source, ca=trusted),
        Place(name, world.BULK, source=source, ca=trusted),
        Place(name, world.HELLO, source=source, ca=trusted),
        processes=(pid,),
    )


REDIRECTS = {
    **{(_SQUID_CLIENT, port): _SQUID_PORT for port in (world.TLS, world.BULK, world.HELLO)},
    **{(_IGNORED_CLIENT, port): _IGNORING_PORT for port in (world.TLS, world.BULK, world.HELLO)},
    **{(_INSPECTED_CLIENT, port): _INSPECTING_PORT for port in (world.TLS, world.HTTP)},
    (_BUMPED_CLIENT, world.TLS): _BUMPING_PORT,
}


def _mitmdump() -> Path:
    return Path(sys.executable).with_name("mitmdump")


def _set(options: Sequence[str]) -> list[str]:
    return [word for option in options for word in ("--set", option)]


def _start(argv, address: str, port: int, work: Path, closing: contextlib.ExitStack) -> int:
    log = work / f"{os.path.basename(str(argv[0]))}-{port}.out"
    process = servers.start(argv, core=servers.PROXY_CORE, log=log)
    closing.callback(servers.stop, process)
    servers.wait_for(process, (address, port), log)
    return process.pid
