"""The bench's own corner of the machine: a network, mount and pid namespace that end, with all in them, with the bench.

The network has nothing but `lo`. Whoever connects from an address of REDIRECTED is redirected by the kernel, as a
transparent proxy's clients are; nobody else's packets are tracked, so that they don't pay for that.
"""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from enforcer.system import linux

ORIGIN = "10.77.0.1"
REDIRECTED = "10.77.9.0"  # /24
SPLICED, INSPECTED = "splice.bench.test", "inspect.bench.test"
HTTP, TLS, BULK, HELLO, EVENTS, GIT = 80, 443, 9000, 9001, 9002, 9003

LATE = 124  # as timeout(1) says it

_ACCEPT = 1
_OUTPUT = "output"
_RAW_PRIORITY, _NAT_PRIORITY = -300, -100
_NOTRACK = {"attrs": [("NFTA_EXPR_NAME", "notrack")]}  # it has no data, which pyroute2 would want to encode
TRUST = "/etc/ssl/certs/ca-certificates.crt"


def inside(run, *, seconds: float) -> int:
    """Run `run` as the first process of fresh namespaces; returns its status, LATE when it took too long."""
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS | os.CLONE_NEWPID | os.CLONE_NEWIPC)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            status = run()
        except KeyboardInterrupt:
            status = 130
        except BaseException:  # noqa: BLE001 - told, then the status says it
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child hears it too, and ends
    try:
        return _wait(pid, seconds)
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _wait(pid: int, seconds: float) -> int:
    descriptor = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    ended = poll.poll(seconds * 1000)
    os.close(descriptor)
    if not ended:
        return LATE
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 1


def furnish(work: Path, ca: bytes) -> None:
    """Give the namespaces their addresses, names, and a trust in the bench's own CA as this host's."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    # Squid leaves things there.
    linux.mount("tmpfs", "/dev/shm", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777")
    _replace("/etc/hosts", f"127.0.0.1 localhost\n{ORIGIN} {SPLICED} {INSPECTED}\n".encode(), work / "hosts")
    trust = os.path.realpath(TRUST)
    _replace(trust, Path(trust).read_bytes().rstrip(b"\n") + b"\n" + ca, work / "roots.pem")
    _addresses()
    for name, value in (("ip_local_port_range", "10000 65000"), ("tcp_tw_reuse", "1")):
        Path(f"/proc/sys/net/ipv4/{name}").write_text(value)


def as_found[Found](measure: Callable[[], Found]) -> Found:
    """Measure in a process of its own, with /etc as this host has it.

    Where files of it are mounted over, as `furnish` does, a sandbox's /etc is put together entry by entry.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: Found | Exception
        try:
            os.unshare(os.CLONE_NEWNS)
            for path in ("/etc/hosts", os.path.realpath(TRUST)):
                subprocess.run(["umount", "--lazy", path], check=True)
            answer = measure()
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            answer = error
        with open(theirs, "wb") as file:
            pickle.dump(answer, file)
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        answer = pickle.load(file)
    os.waitpid(pid, 0)
    if isinstance(answer, Exception):
        raise answer
    return answer


def redirect(rules: dict[tuple[str, int], int]) -> None:
    """Send what comes from an address and goes to a port of the origin to another port: {(source, port): port}."""
    from pyroute2.nftables.expressions import genex, ipv4addr, verdict
    from pyroute2.nftables.main import NFTables

    def port(number: int):
        load = {"dreg": 1, "base": 2, "offset": 2, "len": 2}
        compare = {"sreg": 1, "op": 0, "data": {"attrs": [("NFTA_DATA_VALUE", number.to_bytes(2))]}}
        return [genex("payload", load), genex("cmp", compare)]

    def to(number: int):
        load = {"dreg": 1, "data": {"attrs": [("NFTA_DATA_VALUE", number.to_bytes(2))]}}
        return [genex("immediate", load), genex("redir", {"reg_proto_min": 1})]

    with NFTables(nfgen_family=2) as nft:
        nft.table("add", name="bench")
        nft.chain(
            "add", table="bench", name="untracked", hook=_OUTPUT, type="filter", priority=_RAW_PRIORITY, policy=_ACCEPT
        )
        for match in (ipv4addr(src=REDIRECTED + "/24"), ipv4addr(dst=REDIRECTED + "/24")):
            nft.rule("add", table="bench", chain="untracked", expressions=(match, verdict(_ACCEPT)))
        nft.rule("add", table="bench", chain="untracked", expressions=([_NOTRACK],))
        nft.chain(
            "add", table="bench", name="redirected", hook=_OUTPUT, type="nat", priority=_NAT_PRIORITY, policy=_ACCEPT
        )
        for (source, asked), given in rules.items():
            nft.rule(
                "add", table="bench", chain="redirected", expressions=(ipv4addr(src=source), port(asked), to(given))
            )


def _replace(path: str, content: bytes, by: Path) -> None:
    by.write_bytes(content)
    linux.mount(str(by), path, flags=linux.MS_BIND)


def _addresses() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        lo = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=lo, state="up")
        ip.addr("add", index=lo, address=ORIGIN, prefixlen=32)
        ip.addr("add", index=lo, address=REDIRECTED.removesuffix("0") + "1", prefixlen=24)
