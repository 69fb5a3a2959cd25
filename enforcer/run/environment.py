"""Environment of a task: variables, and its own files of /etc (hosts, users, resolv.conf).

Variables are clean by default, with the sandbox's trusted roots for every common client. Only names without credentials
are taken from the caller; others are named with `--env`.
"""

import math
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from enforcer.sandbox.identity import Identity
from enforcer.sandbox.mount_plan import JAVA_STORE, bundle_files, java_store_files
from enforcer.sandbox.system_paths import real_paths
from enforcer.system.errors import UsageError
from enforcer.system.processes import WATCHED, ReceivedSignal
from proxy.wire import message
from rules.loading.secret_schema import (
    BUNDLE,
    DOTNET_MEMORY,
    GO_MEMORY,
    JAVA,
    LOCALE,
    NODE,
    PROCESSORS,
    SYSTEM_STORE,
    TAKEN,
    TELEMETRY,
    placeholder_objection,
)
from rules.sandbox import NO_SANDBOX_SETTINGS, SandboxSettings
from rules.values.names import INFO_API
from rules.values.patterns import Pattern

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PLAIN = frozenset({"C", "POSIX"})  # locales without characters beyond ASCII

_GO_SHARE = 0.9  # of the memory, for Go's heap; the rest is for everything else
_DOTNET_SHARE = 0.75  # of the memory, for its heap: its default in a container
_NODE_SHARE = 0.75  # of the memory, for old objects, as node(1) recommends for --max-old-space-size
_NODE_LARGEST = 4 << 30  # bytes: its own default maximum
# Java's only variable. Java prints a notice about it at each start; its command line overrides it.
_JAVA = f"-Djavax.net.ssl.trustStore={JAVA_STORE} -Djavax.net.ssl.trustStoreType=PKCS12"
_NSSWITCH = b"""passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
netgroup: files
"""
# Browsers have roots of their own. Chromium, Chrome, Chrome for Testing (Playwright's) and Edge take more from a policy
# (CACertificates, chromeenterprise.google/policies), which each reads from a directory of its own.
_BROWSERS = ("chromium", "opt/chrome", "opt/chrome_for_testing", "opt/edge")


def build_environment(
    caller: Mapping[str, str],
    identity: Identity,
    bundle: str,
    named: Sequence[str],
    box: SandboxSettings = NO_SANDBOX_SETTINGS,
) -> dict[str, str]:
    """Return a task's environment. `named`: `NAME` (the caller's value) or `NAME=VALUE`. Raises UsageError.

    Values that rules keep of the caller's never replace the sandbox's own; values that are set do.
    """
    own = {name: value for name, value in caller.items() if name in TAKEN or name.startswith(LOCALE)}
    own.update((name, caller[name]) for name in kept_variables(caller, box.keep))
    own.setdefault("PATH", _PATH)
    if not own.get("LC_ALL") and (own.get("LC_CTYPE") or own.get("LANG") or "C") in _PLAIN:
        own["LC_CTYPE"] = "C.UTF-8"  # otherwise it would depend on a parent interpreter (PEP 538)
    own.update(
        HOME=identity.home,
        USER=identity.user,
        LOGNAME=identity.user,
        SHELL="/bin/sh",
        TMPDIR="/tmp",
    )
    own.update(dict.fromkeys(BUNDLE, bundle))
    own = {**_of_limits(box), **own}
    own.update(
        {
            **SYSTEM_STORE,
            JAVA: " ".join((_JAVA, *_java_limits(box))),
            TELEMETRY: f"http://{INFO_API}:4318",
            **dict(box.variables),
        }
    )
    for entry in named:
        name, equals, value = entry.partition("=")
        if not name or "\0" in entry:
            raise UsageError(f"invalid value `{entry}` for `--env`: use `NAME` or `NAME=VALUE`")
        if equals:
            own[name] = value
        elif name in caller:
            own[name] = caller[name]
        else:
            raise UsageError(f"`--env {name}`: the variable is not set here; use `--env {name}=VALUE`")
    return own


def _of_limits(box: SandboxSettings) -> dict[str, str]:
    """Return variables that tell runtimes explicit limits: the cgroup that they would read isn't visible."""
    own: dict[str, str] = {}
    if box.cpu is not None:
        own.update(dict.fromkeys(PROCESSORS, str(math.ceil(box.cpu))))
    if box.memory is not None:
        own[GO_MEMORY] = str(int(box.memory * _GO_SHARE))
        own[DOTNET_MEMORY] = f"{int(box.memory * _DOTNET_SHARE):x}"
        if (heap := int(box.memory * _NODE_SHARE)) < _NODE_LARGEST:
            own[NODE] = f"--max-old-space-size={max(heap >> 20, 1)}"
    return own


def _java_limits(box: SandboxSettings) -> list[str]:
    """Return JVM options for explicit limits: its heap is a quarter of MaxRAM by default."""
    said = [] if box.memory is None else [f"-XX:MaxRAM={box.memory}"]
    said += [] if box.cpu is None else [f"-XX:ActiveProcessorCount={math.ceil(box.cpu)}"]
    return ["-XX:+IgnoreUnrecognizedVMOptions", *said] if said else []  # JDK 8 has the second option from update 191 on


def given_variables(caller: Mapping[str, str], named: Sequence[str], box: SandboxSettings) -> set[str]:
    """Return the variables that options and rule files give a task, beside those that every task gets."""
    return {*(entry.partition("=")[0] for entry in named), *kept_variables(caller, box.keep), *dict(box.variables)}


def kept_variables(caller: Mapping[str, str], globs: Sequence[str]) -> list[str]:
    """Return the caller's variables that match these globs."""
    patterns = [Pattern.parse(glob) for glob in globs]
    return [name for name in caller if name and any(pattern.matches(name) for pattern in patterns)]


def add_placeholders(variables: dict[str, str], placeholders: object) -> None:
    """Add the placeholders of secrets, by variable. Raises UsageError for a variable that is set already."""
    for name, placeholder in (placeholders if isinstance(placeholders, dict) else {}).items():
        if name in variables:
            raise UsageError(placeholder_objection(name))
        variables[str(name)] = str(placeholder)


def browser_policies(certificate: bytes) -> dict[str, bytes]:
    """Return policies with which browsers trust our CA, by path in /etc; none where a path is a link."""
    policy = b'{"CACertificates": ["%b"]}\n' % b"".join(certificate.splitlines()[1:-1])  # the body of PEM is Base64
    places = [f"/etc/{place}" for place in _BROWSERS]
    found = [place for place, leads in zip(_BROWSERS, real_paths(places), strict=True) if leads == f"/etc/{place}"]
    return {f"{place}/policies/managed/exeat-ca.json": policy for place in found}


def etc_files(  # noqa: PLR0917
    identity: Identity, hostname: str, nameserver: str, certificate: bytes, link: str, trusted: bytes, java: bytes
) -> dict[str, bytes]:
    """Return files of /etc by relative path. `certificate`: our CA's, `link`: its name for OpenSSL's look-up.

    `trusted`: the bundle that a sandbox trusts, `java`: Java's trust store.

    No `search` line in resolv.conf: with one, a synthetic answer for every name makes clients use the wrong name.
    """
    user = f"{identity.user}:x:{identity.uid}:{identity.gid}::{identity.home}:/bin/sh\n"
    group = f"{identity.user}:x:{identity.gid}:\n"
    if identity.uid:
        user, group = f"root:x:0:0::/root:/usr/sbin/nologin\n{user}", f"root:x:0:\n{group}"
    own = {
        "resolv.conf": f"nameserver {nameserver}\n".encode(),
        "hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {hostname}\n".encode(),
        "hostname": f"{hostname}\n".encode(),
        "nsswitch.conf": _NSSWITCH,
        "passwd": f"{user}nobody:x:65534:65534::/:/usr/sbin/nologin\n".encode(),
        "group": f"{group}nogroup:x:65534:\n".encode(),
    }
    if link and os.path.isdir("/etc/ssl/certs"):
        folder = os.path.relpath(os.path.realpath("/etc/ssl/certs"), "/etc")
        own[f"{folder}/{link}"] = certificate
    return bundle_files(trusted, {**java_store_files(java), **browser_policies(certificate), **own})


_LONGEST = 256  # bytes of a message


class Caller:
    """The connection to a client."""

    __slots__ = ("connection",)

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.connection.fileno()

    def read(self) -> ReceivedSignal:
        """Read a signal. The end of the client, or an invalid message, is returned as SIGKILL."""
        try:
            arrived = parse_signal(self.connection.recv(_LONGEST))
        except OSError:
            arrived = None
        return arrived or ReceivedSignal(signal.SIGKILL, from_terminal=False)

    @property
    def pid(self) -> int:
        """The client's pid, as of when it connected (SO_PEERCRED)."""
        return int.from_bytes(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)

    def carry_in(self, primary: int) -> None:
        """Send the client the task's terminal, to relay typed keys: only a process of its session may read them."""
        message.send_packet(self.connection, b"terminal", [primary])

    def ended(self, status: int) -> None:
        """Send the task's wait status (waitpid(2))."""
        self.connection.send(b"status %d" % status)


def parse_signal(packet: bytes) -> ReceivedSignal | None:
    """Return the signal in a message `signal NUMBER FROM_TERMINAL`, if it is one that is passed on."""
    word, _, rest = packet.partition(b" ")
    number, _, terminal = rest.partition(b" ")
    if word != b"signal" or not number.isdigit() or terminal not in (b"0", b"1") or int(number) not in WATCHED:
        return None
    return ReceivedSignal(int(number), from_terminal=terminal == b"1")
