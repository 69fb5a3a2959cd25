"""What a sandbox has for itself, looked at from inside one: names, roots of trust, an init; and what it has nothing of."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from enforcer.network.constants import OWN_IPV4
from enforcer.sandbox.mount_plan import JAVA_STORE, JAVA_STORES
from enforcer.worker.trust import system_roots
from proxy.certificates.system_bundles import BUNDLES

RULES = "version: 1\nname: nothing\nsandbox: {hostname: box-7}\nrules: []\n"

PYTHON = Path(sys.base_prefix) / "bin" / "python3"
DENIED, BUSY = "Permission denied", "Device or resource busy"
# What clients read instead of a store of their own: OpenSSL, requests, Node.js, git, curl, pip, cargo and their kind.
VARIABLES = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "npm_config_cafile",
    "YARN_HTTPS_CA_FILE_PATH",
    "DENO_CERT",
    "AWS_CA_BUNDLE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "BUNDLE_SSL_CA_CERT",
    "CODEX_CA_CERTIFICATE",
    "NIX_SSL_CERT_FILE",
]
STORES = [JAVA_STORE, *JAVA_STORES]
INSIDE = """
import glob, json, os, sys, time
variables, stores, state = json.loads(sys.argv[1])

def tried(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        return error.strerror

def read(path):
    with open(path) as file:
        return file.read()

def append(path):
    open(path, "a").close()

def left(pids):
    # Those that are there in any state: an init that reaps nobody has them as zombies for as long as it lives.
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]

orphans, told = [], os.pipe()
for number in range(3):
    child = os.fork()
    if child == 0:
        for _ in range(5):
            if (pid := os.fork()) == 0:
                os._exit(0)
            os.write(told[1], b"%d " % pid)
        os._exit(0)  # before it has waited for any of them: from here on they are init's
    os.waitpid(child, 0)
os.close(told[1])
with os.fdopen(told[0]) as said:
    orphans = said.read().split()
deadline = time.monotonic() + 30
while left(orphans) and time.monotonic() < deadline:
    time.sleep(0.01)
key = f"{state}/ca/ca.pem"
print(json.dumps({
    "variables": {name: os.environ.get(name) for name in variables},
    "bundles": {path: tried(read, path) for path in {os.environ.get(name) for name in variables} if path},
    "files": {name: tried(read, f"/etc/{name}") for name in ("resolv.conf", "hosts", "nsswitch.conf")},
    "stores": [os.stat(path).st_ino for path in stores if os.path.exists(path)],
    "orphans": [len(orphans), left(orphans)],
    "state": {
        "listed": tried(os.listdir, state), "below": sorted(glob.glob(f"{state}/**", recursive=True)),
        "read": tried(read, key), "written": tried(append, f"{state}/new"), "renamed": tried(os.rename, state, "mine"),
        "above": tried(os.rename, os.path.dirname(state), "mine"), "removed": tried(os.rmdir, state),
        "opened": tried(os.chmod, state, 0o777),
    },
}))
"""


@pytest.fixture
def state(someone):
    """The state of who runs it, in the very directory that the task writes: as where somebody works in a home."""
    return Path(shutil.move(someone.home / ".local" / "state", someone.work / "local")) / "exeat"


def test_sandbox_has_its_own_hosts_and_ca_files(someone, state):
    script = someone.write(someone.work / "inside.py", INSIDE)
    rules = someone.write(someone.home / "rules.yaml", RULES)
    exeat = ["env", f"XDG_STATE_HOME={state.parent}", Path(sys.executable).with_name("exeat"), "run", "--quiet"]
    before = sorted(path.relative_to(state) for path in (state / "ca", *state.glob("ca/*")))
    words = [
        "--rules",
        rules,
        "--read",
        sys.base_prefix,
        "--",
        PYTHON,
        script,
        json.dumps([VARIABLES, STORES, str(state)]),
    ]
    done = someone.run([*exeat, *words])
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)

    assert said["variables"] == dict.fromkeys(VARIABLES, BUNDLES[0])
    [bundle] = said["bundles"].values()
    certificate = (state / "ca" / "ca.pem").read_text().partition("-----BEGIN CERTIFICATE-----")[2]
    assert certificate.strip() in bundle
    assert system_roots().decode().strip() in bundle

    assert said["files"]["resolv.conf"] == f"nameserver {OWN_IPV4}\n"
    assert said["files"]["hosts"] == "127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 box-7\n"
    sources = dict(line.split(": ") for line in said["files"]["nsswitch.conf"].splitlines())
    assert (sources.pop("hosts"), set(sources.values())) == ("files dns", {"files"})  # no daemon of the host's is asked
    assert {"passwd", "group", "services"} <= sources.keys()

    [_] = set(said["stores"])  # what Java reads is in memory once, under all its names

    assert said["orphans"] == [15, []]

    gone = said["state"]
    assert (gone.pop("below"), gone.pop("renamed")) == ([f"{state}/"], "Invalid cross-device link")
    assert gone == {
        "listed": DENIED, "read": DENIED, "written": DENIED, "above": BUSY, "removed": BUSY, "opened": "Read-only file system",
    }  # fmt: skip
    assert sorted(path.relative_to(state) for path in (state / "ca", *state.glob("ca/*"))) == before
    assert any(state.glob("journal/*/*.jsonl")), "the run's own journal was not in there"
