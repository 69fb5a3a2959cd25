"""Tasks behind a company's proxy: a real squid and a real SOCKS server among the lab's origins, both with a password.

Nothing of a task reaches an origin but by way of the proxy; with the proxy down nothing does at all; and the password is
found nowhere but in its file and in the worker.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enforcer.system.errors import HostError, UsageError
from enforcer.worker import credentials
from tests.lab import Lab, Name
from tests.rules.rule_texts import policy
from tests.support import harness

PROXY, PASSWORD = "10.8.0.3", f"geheim-{os.getpid()}"  # others may try the same at the same time
LOGIN = f"me:{PASSWORD}"
PATTERN = PASSWORD.replace("m", "[m]")  # which doesn't find itself
NAMES = {"good.example": Name.at("93.184.216.34"), "spliced.example": Name.at("93.184.216.35")}
PORTS = {"http": 3128, "socks5": 1080}

RULES = """
version: 1
name: web
settings:
  upstream: {scheme}://proxy.corp.example:{port}
  {auth}
  upstream_except: [direct.example]
rules:
  - {{id: read, to: good.example, http: {{methods: [GET], paths: ["/**"]}}, action: allow}}
  - {{id: clear, to: good.example, ports: [80/http], http: {{methods: [GET], paths: ["/**"]}}, action: allow}}
  - {{id: bulk, to: spliced.example, tls: splice, action: allow}}
  - {{id: shell, to: good.example, ports: [22/tcp], action: allow}}
  - {{id: open, to: [10.0.0.0/8, proxy.corp.example], ports: [1-65535/tcp], resolves_to: [10.0.0.0/8], action: allow}}
"""

TASK = """
curl -sS -m 20 https://good.example/echo?inspected
curl -sS -m 20 https://spliced.example/echo?spliced
curl -sS -m 20 -o /dev/null -w '%{http_code}\n' -X DELETE https://good.example/echo
exec 3<>/dev/tcp/good.example/22 && head -c 8 <&3 | od -An -c | head -1
exec 4<>/dev/tcp/PROXY/PORT; echo hello >&4; cat <&4
exec 5<>/dev/tcp/proxy.corp.example/PORT; echo hello >&5; cat <&5
grep -rs SECRET /etc /run /tmp "$HOME" . && echo the password is here
cat /proc/*/environ /proc/*/cmdline 2>/dev/null | grep -ac SECRET
true
"""

SQUID = """
http_port 0.0.0.0:3128
pid_filename none
hosts_file {work}/hosts
access_log stdio:{work}/access.log
cache_log {work}/cache.log
cache deny all
coredump_dir {work}
shutdown_lifetime 0 seconds
auth_param basic program {helper} {work}/passwords
acl known proxy_auth REQUIRED
{more}
http_access allow known
http_access deny all
"""


@pytest.fixture(scope="module")
def lab():
    harness.needs_root()
    with Lab(NAMES, hosts={"proxy.corp.example": PROXY}) as made:
        yield made


@pytest.fixture(params=["root", "user"])
def who(request):
    return None if request.param == "root" else Lab.ORDINARY


@contextlib.contextmanager
def socks(lab):
    settings = {
        "host": "0.0.0.0",
        "port": 1080,
        "login": LOGIN,
        "names": {name: NAMES[name].addresses[0] for name in NAMES},
    }
    argv = [sys.executable, "-m", "tests.lab.proxies", json.dumps(settings)]
    with lab.start_at_origin(argv, cwd=harness.PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert json.loads(process.stdout.readline()) == {"ready": True}
            yield lambda: process.stdout
        finally:
            process.kill()


AS_IT_COMES = """
acl SSL_ports port 443
acl Safe_ports port 80 21 443 70 210 1025-65535 280 488 591 777
http_access deny !Safe_ports
http_access deny CONNECT !SSL_ports
"""


@contextlib.contextmanager
def squid(lab, more=""):
    program = shutil.which("squid", path=f"{os.defpath}:/usr/sbin") or harness.missing("squid")
    helper = Path("/usr/lib/squid/basic_ncsa_auth")
    if not helper.exists():
        harness.missing("squid's basic_ncsa_auth")
    work = lab.directory / "squid"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    user, _, password = LOGIN.partition(":")
    hashed = subprocess.run(["openssl", "passwd", "-apr1", password], capture_output=True, text=True, check=True).stdout
    (work / "passwords").write_text(f"{user}:{hashed}")
    (work / "hosts").write_text("".join(f"{NAMES[name].addresses[0]} {name}\n" for name in NAMES))
    (work / "squid.conf").write_text(SQUID.format(work=work, helper=helper, more=more))
    for path in (work, *work.iterdir()):
        shutil.chown(path, "proxy")
    with lab.start_at_origin([program, "-N", "-f", work / "squid.conf"]) as process:
        try:
            deadline = time.monotonic() + 30
            while lab.run(["curl", "-s", "-m", "1", f"http://{PROXY}:3128/"]).returncode and process.poll() is None:
                assert time.monotonic() < deadline, (work / "cache.log").read_text()
            yield (work / "access.log").read_text
        finally:
            process.kill()


SERVERS = {"http": squid, "socks5": socks}


def rules(lab, who, scheme, *, auth=True):
    """Write a rule file, and the file with the password."""
    home = lab.home(who)
    secret = home / "proxy.auth"
    secret.write_text(LOGIN + "\n")
    secret.chmod(0o600)
    path = home / "rules.yaml"
    said = f"upstream_auth: {secret}" if auth else "mode: enforce"
    path.write_text(RULES.format(scheme=scheme, port=PORTS[scheme], auth=said))
    for each in (path, secret):
        os.chown(each, who or 0, who or 0)
    return path


def journal(lab, who):
    return harness.journal(lab.home(who))


def run(lab, who, scheme, path):
    shutil.rmtree(lab.home(who) / ".local", ignore_errors=True)
    script = TASK.replace("SECRET", f"'{PATTERN}'").replace("PROXY", PROXY).replace("PORT", str(PORTS[scheme]))
    return lab.run(
        ["exeat", "run", "--quiet", "--rules", path, "--", "bash", "-c", script], user=who, cwd=lab.workspace(who)
    )


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@harness.in_the_lab_as_a_user
def test_connections_use_only_the_upstream_proxy(lab, who, scheme):
    path = rules(lab, who, scheme)
    lab.origin.forget()
    with SERVERS[scheme](lab):
        done = run(lab, who, scheme, path)
    inspected, spliced, *rest = done.stdout.splitlines()
    assert json.loads(inspected)["target"] == "/echo?inspected"
    assert json.loads(spliced)["target"] == "/echo?spliced"
    assert rest[0] == "403", done
    assert len(rest) == 3, done  # the greeting, and that the password is in no environment or command line
    assert rest[2] == "0"
    told = journal(lab, who)
    via = f"{scheme}://proxy.corp.example:{PORTS[scheme]}"
    for kind, name, port in (
        ("request.decided", "good.example", 443),
        ("connection.decided", "spliced.example", 443),
        ("connection.decided", "good.example", 22),
    ):
        [event] = [
            e
            for e in told
            if e["kind"] == kind
            and (e["destination"].get("name"), e["destination"]["port"], e["outcome"]) == (name, port, "passed")
            and "via" in e["destination"]
        ]
        assert event["destination"] == {"name": name, "port": port, "via": via}
    itself = [e for e in told if e["kind"] == "connection.decided" and e["destination"]["port"] == PORTS[scheme]]
    refused = [e["reason"] for e in itself]
    assert refused == ["non_public_address"] * 2
    assert lab.origin.packets_to("93.184.216.34", "93.184.216.35") == 0
    assert lab.origin.queries("good.example") == lab.origin.queries("spliced.example") == []
    assert PASSWORD not in repr(told) + done.stdout + done.stderr


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@harness.in_the_lab_as_a_user
def test_stopped_proxy_blocks_everything(lab, who, scheme):
    path = rules(lab, who, scheme)
    lab.origin.forget()
    done = run(lab, who, scheme, path)
    assert '"reason": "upstream_failed"' in done.stdout
    assert "connection refused" in done.stdout
    ends = {(e["outcome"], e["reason"]) for e in journal(lab, who) if e["kind"] == "request.completed"}
    assert ends == {("failed", "upstream_failed")}
    assert lab.origin.packets_to("93.184.216.34", "93.184.216.35") == 0
    assert lab.origin.queries("good.example") == lab.origin.queries("spliced.example") == []


@harness.in_the_lab_as_a_user
def test_proxy_refusal_is_reported(lab, who):
    path = rules(lab, who, "http", auth=False)
    with squid(lab) as log:
        done = run(lab, who, "http", path)
        assert "TCP_DENIED/407" in log()
    assert "it requires a user and a password (407)" in done.stdout
    closed = [e for e in journal(lab, who) if e["kind"] == "connection.closed" and e.get("detail")]
    assert {e["detail"] for e in closed} == {
        "the proxy `http://proxy.corp.example:3128`: it requires a user and a password (407)"
    }


def test_plain_http_passes_squid(lab):
    """Which makes connections to port 443 alone, and adds what it is told to no request."""
    path = rules(lab, None, "http")
    lab.origin.forget()
    script = (
        "curl -sS -m 20 http://good.example/echo?1 http://good.example/echo?2 https://good.example/echo?3; "
        "curl -sS -m 20 -o /dev/null -w '%{http_code}\n' -X DELETE http://good.example/echo"
    )
    with squid(lab, AS_IT_COMES) as log:
        done = lab.run(["exeat", "run", "--quiet", "--rules", path, "--", "sh", "-c", script], cwd=lab.workspace(None))
        asked = [(words[5], words[6]) for words in map(str.split, log().splitlines()) if "TCP_DENIED" not in words[3]]
    assert re.findall(r'"target": *"([^"]*)"', done.stdout) == [f"/echo?{n}" for n in (1, 2, 3)]
    assert done.stdout.endswith("403\n")
    in_clear = ("GET", "http://good.example/echo?")
    assert [each for each in asked if "good.example" in each[1]] == [
        in_clear,
        in_clear,
        ("CONNECT", "good.example:443"),
    ]
    assert PASSWORD not in repr(journal(lab, None)) + done.stdout + done.stderr
    assert "roxy-authorization" not in done.stdout


def test_password_is_in_no_visible_process(lab, who):
    path = rules(lab, who, "http")
    argv = ["exeat", "run", "--quiet", "--rules", path, "--", "sh", "-c", "echo ready; read end"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with lab.start(argv, user=who, cwd=lab.workspace(who), **streams) as process:
        assert process.stdout.readline() == "ready\n"
        shown = b""
        for each in Path("/proc").glob("[0-9]*/*"):
            if each.name in {"cmdline", "environ"}:
                with contextlib.suppress(OSError):
                    shown += each.read_bytes()
        process.communicate("end\n")
    assert b"proxy.auth" not in shown
    assert PASSWORD.encode() not in shown


def wait_for_events(lab, who, kind, count):
    """Wait for so many events of a kind; returns the latest."""
    deadline = time.monotonic() + 30
    while len(found := [e for e in journal(lab, who) if e["kind"] == kind]) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found[-1]


@harness.in_the_lab_as_a_user
def test_reload_reads_the_password_again(lab, who):
    shutil.rmtree(lab.home(who) / ".local", ignore_errors=True)
    path = rules(lab, who, "socks5")
    secret, text = path.with_name("proxy.auth"), path.read_text()
    script = "while read line; do curl -sS -m 20 -o /dev/null -w '%{http_code}\\n' https://good.example/; done"
    argv = ["exeat", "run", "--quiet", "--rules", path, "--", "sh", "-c", script]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with socks(lab), lab.start(argv, user=who, cwd=lab.workspace(who), **streams) as process:

        def status():
            process.stdin.write("go\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        assert status() == "200"
        secret.write_text("me:not-geheim\n")
        path.write_text(text + "# once\n")
        wait_for_events(lab, who, "rules.loaded", 2)
        assert status() == "502"
        secret.write_text(LOGIN)
        path.write_text(text + "# and again\n")
        wait_for_events(lab, who, "rules.loaded", 3)
        assert status() == "200"
        path.write_text(text.replace("proxy.auth", "other.auth"))
        [problem] = wait_for_events(lab, who, "rules.rejected", 1)["problems"]
        assert "`upstream_auth` can't be another file while a task runs" in problem
        secret.chmod(0o640)
        path.write_text(text + "# a third time\n")
        [problem] = wait_for_events(lab, who, "rules.rejected", 2)["problems"]
        assert "is open to others" in problem
        assert status() == "200"
        process.communicate(timeout=60)
    assert "geheim" not in repr(journal(lab, who))


BAD = [
    ("open to others", 0o644, "is open to others (mode 644)"),
    ("missing", None, "can't be read: no such file"),
]


@pytest.mark.parametrize(("mode", "why"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_start_without_a_safe_password_is_refused(someone, mode, why):
    secret = someone.write(someone.home / "proxy.auth", LOGIN)
    if mode is None:
        secret.unlink()
    else:
        secret.chmod(mode)
    settings = f"{{upstream: 'http://proxy:1', upstream_auth: {secret}}}"
    rules = someone.write(someone.home / "r.yaml", f"version: 1\nname: r\nsettings: {settings}\nrules: []\n")
    done = someone.exeat("run", "--rules", rules, "--", "touch", "ran")
    assert done.returncode == 125
    assert why in done.stderr.decode()
    assert b"geheim" not in done.stderr
    assert not (someone.work / "ran").exists()


@pytest.mark.parametrize("where", ["workspace", "shown", "linked"])
def test_password_visible_to_the_task_is_refused(someone, where):
    shown = someone.home / "shown"
    secret = someone.write((someone.work if where == "workspace" else shown) / "proxy.auth", LOGIN)
    secret.chmod(0o600)
    if where == "linked":
        (someone.home / "link").symlink_to(shown)
        secret = someone.home / "link" / "proxy.auth"
    settings = f"{{upstream: 'http://proxy:1', upstream_auth: {secret}}}"
    rules = someone.write(someone.home / "r.yaml", f"version: 1\nname: r\nsettings: {settings}\nrules: []\n")
    options = [] if where == "workspace" else ["--read", shown]
    done = someone.exeat("run", "--rules", rules, *options, "--", "touch", "ran")
    assert done.returncode in (2, 125)
    assert "which the task is shown; keep it elsewhere" in done.stderr.decode()
    assert not (someone.work / "ran").exists()


def test_password_file_is_hidden_at_its_real_path(tmp_path):
    (tmp_path / "real").write_text(LOGIN)
    (tmp_path / "link").symlink_to("real")
    said = policy(
        "- {id: a, to: x.example, action: deny}",
        f"settings: {{upstream: 'http://p:1', upstream_auth: {tmp_path}/link}}",
    )
    assert credentials.hidden_files(said, {}, ["/elsewhere"]) == (str(tmp_path / "real"),)
    with pytest.raises(UsageError, match="which the task is shown"):
        credentials.hidden_files(said, {}, [str(tmp_path)])
    with pytest.raises(HostError, match="symbolic links"):
        credentials.read_login(said)
    none = policy("- {id: a, to: x.example, action: deny}")
    assert credentials.hidden_files(none, {}, ["/"]) == ()
    assert credentials.read_login(none) is None
