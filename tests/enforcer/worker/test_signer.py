"""The certificate signer of a run: what it has, who has the key, and what becomes of it and of others when one of them dies."""

import base64
import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.enforcer.worker.signer_harness import descriptors
from tests.soak.leftovers import started
from tests.support import harness
from tests.support.waiting import wait_until

RULES = "version: 1\nname: web\nrules:\n  - {id: a, to: other.example, action: allow}\n"
# Every name is refused, and the page that says so comes with a certificate for it.
FETCH = 'while read -r name; do curl -sk -m 60 -o /dev/null -w "%{http_code}\\n" "https://$name/"; done'


class Running:
    """`exeat run` with a task that fetches what it is told."""

    def __init__(self, someone):
        self.someone = someone
        rules = someone.write(someone.home / "rules.yaml", RULES)
        argv = [Path(harness.sys.executable).with_name("exeat"), "run", "--quiet", "--no-service", "--rules", rules]
        argv += ["--", "bash", "-c", FETCH]
        words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
        environment = {**os.environ, "PYTHONPATH": str(harness.PROJECT), "HOME": str(someone.home)}
        environment.pop("XDG_STATE_HOME", None)
        self.process = subprocess.Popen(
            words, env=environment, cwd=someone.work, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def fetch(self, name):
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def keyholder(self):
        """The process that has nothing but a pair, the channel to who forked it, and what waits for both."""
        found = [pid for pid in children(self.process.pid) if status(pid).get("Seccomp") == "2" and no_files(pid)]
        assert len(found) < 2, "a process that is not the certificate signer was taken for it"
        return found[0] if found else 0

    def told(self, text):
        return [e for e in self.someone.events() if e["kind"] == "gate.error" and text in e["fault"]["detail"]]


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid):
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def status(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def no_files(pid):
    """Whether it has something, and no file: of one that has ended nothing is seen, which is another thing."""
    found = descriptors(pid)
    return bool(found) and all(re.match(r"/dev/null$|socket:|anon_inode:\[eventpoll\]$", each) for each in found)


def needles(file):
    """The private key in every form that a library or a file has it in."""
    pem = file.read_bytes()
    key = load_pem_private_key(pem, None)
    scalar = key.private_numbers().private_value.to_bytes(32)
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return {scalar, scalar[::-1], der, pem.splitlines()[1], base64.b64encode(scalar)}


def has(pid, wanted):
    """Whether a process has one of these in its memory; None: it has ended."""
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{pid}/mem", "rb", buffering=0) as memory,
    ):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            first, last = (int(each, 16) for each in line.split()[0].split("-"))
            if line.split()[1].startswith("r") and not line.rstrip().endswith(
                ("[vvar]", "[vsyscall]", "[vvar_vclock]")
            ):
                memory.seek(first)
                data = b""
                with contextlib.suppress(OSError):  # it was unmapped since it was listed
                    data = memory.read(last - first)
                if any(needle in data for needle in wanted):
                    return True
        return False
    return None


@pytest.mark.first_run
def test_only_the_signer_has_the_key_and_is_replaced_when_it_dies(someone):
    run = Running(someone)
    supervisor = run.process.pid
    with run.process, contextlib.ExitStack() as last:
        last.callback(run.process.kill)
        assert run.fetch("one.example") == "403"
        keyholder = run.keyholder()
        others = [pid for pid in descendants(supervisor) if pid != keyholder]

        said = status(keyholder)
        assert (said["NoNewPrivs"], said["Seccomp"], said["Threads"]) == ("1", "2", "1")
        assert {int(said[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
        ids = {*said["Uid"].split(), *said["Gid"].split()}
        if someone.user:
            assert ids == {str(harness.UID)}
        else:
            assert len(ids) == 1
            assert not ids & {uid for pid in (supervisor, *others) for uid in status(pid).get("Uid", "").split()}
            assert int(said["CapBnd"], 16) == 0
        assert sorted(each.partition(":")[0] for each in descriptors(keyholder)) == [
            "/dev/null", "/dev/null", "/dev/null", "anon_inode", "socket", "socket"
        ]  # fmt: skip

        key = someone.home / ".local/state/exeat/ca/ca.pem"
        wanted = needles(key)
        assert has(keyholder, wanted)
        found = [has(pid, wanted) for pid in (supervisor, *others)]
        assert True not in found
        assert (
            found.count(False) >= 5
        )  # supervisor, worker, watcher, init, the task; programs of the task's come and go
        assert [pid for pid in (keyholder, *others) if str(key) in descriptors(pid)] == []

        # Nobody replaces it now: new names are refused, and what has a certificate goes on.
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(keyholder, signal.SIGKILL)
        wait_until(lambda: started(keyholder) is None, "its end")
        assert [run.fetch(name) for name in ("two.example", "one.example", "two.example")] == ["000", "403", "000"]
        refused = run.told("the certificate signer is gone: no certificate for a new name")
        assert [event["fault"]["where"] for event in refused] == ["inspection", "inspection"]
        os.kill(supervisor, signal.SIGCONT)
        wait_until(lambda: run.told("the certificate signer ended (its process ended)"), "what is told of it")
        wait_until(lambda: run.fetch("two.example") == "403", "another one", pause=0.1)
        assert run.keyholder() not in (0, keyholder)

        # Another CA is none of a running task's business.
        assert someone.exeat("ca", "rotate").returncode == 0
        os.kill(run.keyholder(), signal.SIGKILL)
        wait_until(lambda: run.fetch("three.example") == "403", "one with the key that the task trusts", pause=0.1)

        left = {pid: started(pid) for pid in descendants(supervisor)}
    wait_until(
        lambda: not [pid for pid, since in left.items() if since and started(pid) == since], "the end of all of it"
    )
