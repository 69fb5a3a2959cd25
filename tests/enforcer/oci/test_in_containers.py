"""Exeat inside containers, made by an OCI runtime: what works as it does on a host, and what says what to change."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from enforcer.sandbox import identity, mount_steps
from tests.enforcer.oci.engine import HOMES, REFUSED_BY_DOCKER, USER, Engine, Kind, rootless
from tests.lab import Lab, Name
from tests.support import harness

RULES = "version: 1\nname: web\nrules:\n  - {id: one, to: allowed.example, ports: [443, 5432/tcp], action: allow}\n"
DOCS = harness.PROJECT / "docs/how-to/containers.md"
RUN = "exeat run --no-service --rules /srv/rules.yaml"
MOUNTER = ("SYS_ADMIN",)
# What docker's filter has to allow, as docs/how-to/containers.md says.
ENOUGH = ("clone", "unshare", "mount", "umount2", "mount_setattr", "open_tree", "move_mount", "pivot_root")
# Nothing is left in the container but its first process, and nothing is mounted that wasn't.
ALONE = """
set -- /proc/[0-9]*
until [ "$*" = /proc/1 ]; do sleep 0.05; set -- /proc/[0-9]*; done
[ "$mounted" = "$(cat /proc/self/mountinfo)" ] || echo something is mounted still
"""
WHOLE = f"""
mounted=$(cat /proc/self/mountinfo)
mkdir -p "$1" && cd "$1"
{RUN} --memory 1GB -- sh -c "$2"
status=$?
{ALONE}
cat made
exit $status
"""
# Without the variables that lead to it, the bundle is found in /etc alone.
BY_TLS = """
unset SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE
curl -sS https://allowed.example/echo >echo && echo allowed
curl -sS https://denied.example/ | grep -o '"title": ".*"'
"""
UNREAD = """
python3 -c 'import socket; socket.create_connection(("allowed.example", 5432), 30).recv(1); print("allowed")'
curl -sS http://denied.example/ | grep -o '"title": ".*"'
"""
INSIDE = "cat /etc/hostname; uname -n; ulimit -d; id -u; echo made >made; exit 7"
REFUSING = f"""
mounted=$(cat /proc/self/mountinfo)
cd /volume/work
{RUN} $1 -- touch started
status=$?
{ALONE}
ls
exit $status
"""
SERVED = f"""
mounted=$(cat /proc/self/mountinfo)
cd /volume/work
mkdir -m 700 /tmp/exeat
exeat up 2>/volume/log & up=$!
until [ -S "$EXEAT_CONTROL" ] || ! kill -0 $up; do sleep 0.05; done
exeat run --rules /srv/rules.yaml -- sh -c "$1" & run=$!
until [ -e begun ] || ! kill -0 $run; do sleep 0.05; done
exeat ps --format json >/volume/listed
>go
wait $run; echo "run $?"
kill $up
wait $up; echo "up $?"
{ALONE}
"""


@pytest.fixture(scope="module")
def engine(request):
    harness.needs_root()
    if shutil.which("crun") is None:
        harness.missing("crun")
    names = {"allowed.example": Name.at("93.184.216.34"), "denied.example": Name.at("93.184.216.35")}
    with tempfile.TemporaryDirectory(prefix="exeat-oci-") as directory, Lab(names) as lab:
        Path(directory).chmod(0o755)
        made = Engine(lab, Path(directory), request.getfixturevalue("lived_in"))
        (made.image / "srv/rules.yaml").write_text(RULES)
        yield made


def told(volume):
    """What the journal says was allowed and refused, and how tasks ended."""
    events = harness.journal(volume)
    decided = [event for event in events if event["kind"] in {"connection.decided", "request.decided"}]
    ends = [event["ending"]["status"] for event in events if event["kind"] == "task.ended"]
    return {(event["destination"]["name"], event["outcome"], event["reason"]) for event in decided}, ends


WHOLES = {
    "an ordinary user": (Kind(), f"{HOMES[USER]}/work", BY_TLS, USER),
    "root that may mount": (Kind(uid=0, more=MOUNTER), "/volume/work", UNREAD, 1000),
    "root of a rootless one": (rootless(uid=0), "/root/work", UNREAD, 1000),
}


@pytest.mark.parametrize("who", WHOLES)
def test_run_in_a_container_allows_denies_and_records(engine, who):
    kind, work, task, uid = WHOLES[who]
    done, volume = engine.run(["sh", "-c", WHOLE, "sh", work, task + INSIDE], kind)
    title, name, gigabyte = '"title": "no rule allows this"', "sh", str(1 << 20)  # in /etc, and in units of 1024
    assert done.stdout.splitlines() == ["allowed", title, name, "box", gigabyte, str(uid), "made"], done.stderr
    assert done.returncode == 7, done.stderr
    decided = {("allowed.example", "passed", "rule"), ("denied.example", "blocked", "no_rule")}
    assert told(volume) == (decided, [7])


REFUSALS = {
    "masked": (Kind(unmasked=False), "", mount_steps.UNMASK),
    "a filter like docker's": (Kind(refused=REFUSED_BY_DOCKER), "", identity._ALLOW_REMEDY),
    "docker's, which knows no pivot_root": (
        Kind(uid=0, more=MOUNTER, refused=("pivot_root",)),
        "",
        identity._ALLOW_REMEDY,
    ),
    "no user namespace": (rootless("0"), "", "run `sysctl -w user.max_user_namespaces=15000` as root"),
    "too few of them": (rootless("2"), "", "run `sysctl -w user.max_user_namespaces=15000` as root"),
    "root that may not mount": (Kind(uid=0), "", "`--cap-add SYS_ADMIN`"),
    "a name for its host": (Kind(), "--hostname mine", "(`--hostname`)"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_restricted_container_is_reported_with_a_remedy(engine, why):
    kind, options, remedy = REFUSALS[why]
    done, _ = engine.run(["sh", "-c", REFUSING, "sh", options], kind)
    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (125, "")
    assert line.startswith("exeat: ")
    assert remedy in line


def test_documented_system_calls_are_sufficient():
    [row] = [line for line in DOCS.read_text().splitlines() if line.startswith("| filters system calls |")]
    assert ", ".join(f"`{name}`" for name in ENOUGH[:-1]) + f" and `{ENOUGH[-1]}`" in row


def test_doctor_reports_rlimit_fallback_in_a_container(engine):
    done, _ = engine.run(["exeat", "doctor", "--format", "json"], Kind(uid=0, more=MOUNTER))
    said = json.loads(done.stdout)
    assert (done.returncode, said["ready"]) == (0, True)
    [memory] = [finding for finding in said["findings"] if finding["name"] == "limit of memory"]
    assert memory["seen"].startswith("by rlimit")
    assert memory["remedy"].startswith("make cgroups writable: in a container, ")


def test_service_runs_in_a_read_only_container(engine):
    refused = tuple(name for name in REFUSED_BY_DOCKER if name not in ENOUGH)
    kind = Kind(no_new_privileges=True, read_only=True, refused=refused)
    words = ["env", "EXEAT_CONTROL=/tmp/exeat/control", "sh", "-c", SERVED, "sh"]
    done, volume = engine.run([*words, ">begun; until [ -e go ]; do sleep 0.05; done; exit 7"], kind)
    assert done.stdout.splitlines() == ["run 7", "up 0"], done.stderr
    assert len(json.loads((volume / "listed").read_text())) == 1
    assert told(volume) == (set(), [7])


def test_run_as_pid_1_exits_with_the_tasks_status(engine):
    """Process 1 of a pid namespace can't kill itself (pid_namespaces(7))."""
    words = ["exeat", "run", "--quiet", "--workspace", "/volume/work", "--rules", "/srv/rules.yaml", "--"]
    done, _ = engine.run([*words, "sh", "-c", "kill -SEGV $$"], Kind())
    assert (done.returncode, done.stderr) == (139, "")
