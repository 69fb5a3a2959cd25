"""The CA as its owner sees it: shown, written, replaced; what runs goes on with its own, and the key is never shown."""

import base64
import json
import os
import signal
import ssl
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from enforcer.system import linux
from enforcer.system.errors import HostError
from enforcer.worker import trust
from proxy.certificates import authority
from proxy.certificates.authority_file import AuthorityError
from tests.lab import Lab, Name
from tests.support import harness

pytestmark = pytest.mark.first_run

NOTHING = "version: 1\nname: n\nrules: []\n"
RULES = "version: 1\nname: web\nrules:\n  - {id: a, to: good.example, action: allow}\n"


def kept(someone):
    return someone.home / ".local/state/exeat/ca/ca.pem"


def test_no_ca_before_the_first_run(someone):
    for words in (["show"], ["export"]):
        done = someone.exeat("ca", *words)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"there is no CA in" in done.stderr
    assert not kept(someone).exists()


def test_only_the_certificate_is_printed_and_written(someone):
    assert someone.exeat("ca", "rotate").returncode == 0
    pem, der = (someone.exeat("ca", "export", *more).stdout for more in ((), ("--der",)))
    assert ssl.PEM_cert_to_DER_cert(pem.decode()) == der
    file = someone.work / "ca.crt"
    assert someone.exeat("ca", "export", file).returncode == 0
    assert file.read_bytes() == pem
    shown = someone.exeat("ca", "show")
    facts = json.loads(someone.exeat("ca", "show", "--format", "json").stdout)
    said = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256"], input=pem, capture_output=True, check=True
    )
    assert facts["sha256"] == said.stdout.decode().strip().partition("=")[2]
    assert facts["sha256"].encode() in shown.stdout
    assert 728 <= facts["days_left"] <= 730
    key = kept(someone).read_bytes().partition(b"-----BEGIN CERTIFICATE-----")[0].splitlines()[1]
    for told in (pem, der, shown.stdout, shown.stderr, json.dumps(facts).encode()):
        assert b"PRIVATE" not in told
        assert key not in told


def test_certificate_directory_uses_openssl_names(tmp_path):
    made = trust.public_authority(tmp_path / "ca", tmp_path)
    words = ["openssl", "x509", "-noout", "-subject_hash"]
    said = subprocess.run(words, input=made.certificate.encode(), capture_output=True, check=True)
    assert made.link == f"{said.stdout.decode().strip()}.0"


def test_new_ca_replaces_the_old_and_is_private(someone):
    someone.exeat("ca", "rotate")
    before = someone.exeat("ca", "export").stdout
    done = someone.exeat("ca", "rotate")
    assert b"running tasks keep the one before" in done.stdout
    assert someone.exeat("ca", "export").stdout != before
    assert kept(someone).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in kept(someone).parent.iterdir()] == ["ca.pem"]


def test_exposed_ca_is_refused_and_can_be_replaced(someone):
    someone.exeat("ca", "rotate")
    kept(someone).chmod(0o644)
    for words in (["show"], ["export"]):
        done = someone.exeat("ca", *words)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"is open to others" in done.stderr
    checks = json.loads(someone.exeat("doctor", "--format", "json").stdout)
    [finding] = [finding for finding in checks["findings"] if finding["name"] == "certificate authority"]
    assert not finding["works"]
    assert "is open to others" in finding["seen"]
    assert someone.exeat("ca", "rotate").returncode == 0
    assert someone.exeat("ca", "show").returncode == 0


@pytest.mark.parametrize("words", [["show", "x"], ["rotate", "x"], ["show", "--der"], ["renew"], []])
@harness.as_a_user
def test_invalid_arguments_are_refused(someone, words):
    done = someone.exeat("ca", *words)
    assert done.returncode == 2
    assert not kept(someone).exists()


def test_unwritable_file_is_an_error(someone):
    someone.exeat("ca", "rotate")
    done = someone.exeat("ca", "export", someone.work / "no" / "where")
    assert done.returncode == 2
    assert b"can't be written: No such file" in done.stderr


DUE = [(timedelta(days=31), False), (timedelta(days=29), True), (timedelta(days=-1), True)]


@pytest.mark.parametrize(("left", "due"), DUE)
def test_doctor_reports_an_expiring_ca(tmp_path, monkeypatch, left, due):
    from enforcer.doctor import checks

    monkeypatch.setattr(authority, "LIFE", left)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert checks._try_authority() == "none yet: the first run makes one"
    authority.rotate(tmp_path / "exeat" / "ca")
    said = checks._try_authority()
    assert said.startswith(f"good until {datetime.now(UTC) + left:%Y-%m-%d}")
    assert ("the next run makes a new one" in said) is due


def test_directory_in_place_of_the_file_is_an_error(tmp_path):
    (tmp_path / "ca" / "ca.pem").mkdir(parents=True)
    (tmp_path / "ca").chmod(0o700)
    with pytest.raises(AuthorityError, match="not a plain file"):
        authority.existing(tmp_path / "ca")
    with pytest.raises(AuthorityError, match="can't be replaced: Is a directory"):
        authority.rotate(tmp_path / "ca")


# beside a running task


@pytest.fixture(scope="module")
def lab():
    harness.needs_root()
    with Lab({"good.example": Name.at("93.184.216.34")}) as made:
        yield made


@pytest.fixture(params=["root", "user"])
def who(request):
    return None if request.param == "root" else Lab.ORDINARY


def write(lab, who, text, name="rules.yaml"):
    path = lab.home(who) / name
    path.write_text(text)
    os.chown(path, who or 0, who or 0)
    return path


GET = "curl -sS -m 20 -o /dev/null -w '%{http_code}\n' https://good.example/echo"
MINE = "tac /etc/ssl/certs/ca-certificates.crt | sed '/BEGIN/q' | tac"


@harness.in_the_lab_as_a_user
def test_running_task_keeps_its_ca(lab, who):
    rules = write(lab, who, RULES)
    at = {"user": who, "cwd": lab.workspace(who)}
    argv = ["exeat", "run", "--quiet", "--rules", rules, "--", "bash", "-c", f"{GET}; read go; {GET}; {MINE}"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with lab.start(argv, **at, **streams) as process:
        assert process.stdout.readline() == "200\n"
        old = lab.run(["exeat", "ca", "export"], **at).stdout
        assert lab.run(["exeat", "ca", "rotate"], **at).returncode == 0
        new = lab.run(["exeat", "ca", "export"], **at).stdout
        out, _ = process.communicate("go\n", timeout=60)
    assert out == "200\n" + old
    done = lab.run([*argv[:-1], f"{GET}; {MINE}"], **at)
    assert done.stdout == "200\n" + new
    assert new != old


def test_start_during_a_ca_change_is_refused(tmp_path):
    """The sandbox would trust one and be shown leaves of the other."""
    from enforcer.worker import worker

    (tmp_path / "ca").mkdir(mode=0o700)
    (tmp_path / "cache").mkdir(mode=0o700)
    known = trust.public_authority(tmp_path / "ca", tmp_path / "cache")
    authority.rotate(tmp_path / "ca")
    at = tmp_path / "ca"
    worker_paths = worker.WorkerPaths(at, known.fingerprint, known.expires, known.certificate.encode(), tmp_path, None)
    with pytest.raises(HostError, match="the CA was replaced during the start"):
        worker.start(None, None, worker_paths, worker.WorkerProcess)


@harness.in_the_lab_as_a_user
def test_browsers_get_a_policy_file(lab, who):
    """Chromium and its kin have roots of their own; what the policy adds is the CA's certificate and nothing more."""
    rules = write(lab, who, RULES)
    at = {"user": who, "cwd": lab.workspace(who)}
    places = ("chromium", "opt/chrome", "opt/chrome_for_testing", "opt/edge")
    files = [f"/etc/{place}/policies/managed/exeat-ca.json" for place in places]
    shown = lab.run(["exeat", "run", "--quiet", "--rules", rules, "--", "cat", *files], **at)
    assert shown.returncode == 0, shown.stderr
    pem = lab.run(["exeat", "ca", "export"], **at).stdout
    certificate = base64.b64encode(ssl.PEM_cert_to_DER_cert(pem)).decode()
    assert [json.loads(line) for line in shown.stdout.splitlines()] == [{"CACertificates": [certificate]}] * 4


# Java

PROGRAM = """
import java.net.*;
public class Get {
  public static void main(String[] arguments) throws Exception {
    HttpURLConnection connection = (HttpURLConnection) new URL(arguments[0]).openConnection();
    System.out.println(connection.getResponseCode());
  }
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    for tool in ("java", "javac"):
        if subprocess.run(["sh", "-c", f"command -v {tool}"], capture_output=True, check=False).returncode:
            harness.missing(tool)
    directory = tmp_path_factory.mktemp("java")
    (directory / "Get.java").write_text(PROGRAM)
    subprocess.run(["javac", "-nowarn", "Get.java"], cwd=directory, check=True, capture_output=True)
    return (directory / "Get.class").read_bytes()


JAVAS = [
    ("as it is", "java -cp . Get"),
    ("by the distribution's own store", "env -u JAVA_TOOL_OPTIONS java -cp . Get"),
]


@pytest.mark.parametrize("command", [j[1] for j in JAVAS], ids=[j[0] for j in JAVAS])
@harness.in_the_lab_as_a_user
def test_java_trusts_the_bundle(lab, who, compiled, command):
    rules = write(lab, who, RULES)
    work = lab.workspace(who)
    (work / "Get.class").write_bytes(compiled)
    done = lab.run(
        ["exeat", "run", "--quiet", "--rules", rules, "--", "sh", "-c", f"{command} https://good.example/echo"],
        user=who,
        cwd=work,
    )
    assert done.stdout == "200\n", done.stderr


def test_java_store_is_remade_for_another_ca(tmp_path):
    bundles = [authority.create().certificate_pem for _ in range(2)]
    first = trust.java_store(bundles[0], tmp_path)
    [made] = tmp_path.iterdir()
    times = made.stat().st_mtime_ns
    assert trust.java_store(bundles[0], tmp_path) == first
    assert made.stat().st_mtime_ns == times
    assert trust.java_store(bundles[1], tmp_path) != first
    assert len(list(tmp_path.iterdir())) == 1


def test_simultaneous_starts_have_their_own_java_store(tmp_path, monkeypatch):
    """The other is in the middle of it when one has made its own: that is not an old one to be taken away."""
    monkeypatch.setattr("proxy.certificates.authority.java_truststore", lambda bundle: b"store of " + bundle)
    cache = tmp_path / "cache"
    cache.mkdir(0o700)
    run_in_child, others, parent = trust.run_in_child, [], os.getpid()

    def begin_another(make):
        run_in_child(make)
        monkeypatch.setattr(trust, "run_in_child", run_in_child)
        others.append(os.fork())
        if others == [0]:
            try:
                linux.die_with_parent(signal.SIGKILL, parent)
                (tmp_path / "got").write_bytes(trust.java_store(b"two", cache))
            finally:
                os._exit(0)
        while not waits_for_a_lock(cache) and not (tmp_path / "got").exists():
            time.sleep(0.01)

    monkeypatch.setattr(trust, "run_in_child", begin_another)
    assert trust.java_store(b"one", cache) == b"store of one"
    os.waitpid(others[0], 0)
    assert (tmp_path / "got").read_bytes() == b"store of two"


def waits_for_a_lock(path):
    """Whether somebody does, as the kernel says it (proc_locks(5))."""
    inode = f":{path.stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_java_store_writable_by_others_is_remade(tmp_path):
    bundle = authority.create().certificate_pem
    first = trust.java_store(bundle, tmp_path)
    [made] = tmp_path.iterdir()
    made.write_bytes(b"theirs")
    made.chmod(0o666)
    again = trust.java_store(bundle, tmp_path)
    assert again.startswith(first[:4])
    assert b"theirs" not in again


def test_java_store_skips_unreadable_certificates():
    from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

    from proxy.certificates.authority import java_truststore

    good = authority.create().certificate_pem
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    found = pkcs12.load_pkcs12(java_truststore(b"# roots\n" + broken + good + good), None)
    assert [each.certificate.public_bytes(Encoding.PEM) for each in found.additional_certs] == [good]
    assert java_truststore(b"") == java_truststore(broken) == b""
