"""Services of the lab, tested with ordinary clients and without Exeat."""

import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import Lab, Name
from tests.lab.host_clients import USERS, curl, python
from tests.lab.pages import PATTERN

# The web


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize(("family", "address"), [("-4", "93.184.216.34"), ("-6", "2606:2800:220:1::1")])
def test_https_request_is_echoed_and_recorded(lab, user, version, family, address):
    done = curl(
        lab, f"--http{version}", family, "https://good.example/echo?a=b", "-d", "hello", "-H", "X-Odd: yes", user=user
    )
    echo = json.loads(done.stdout)
    assert (echo["method"], echo["target"], echo["authority"], echo["version"]) == (
        "POST",
        "/echo?a=b",
        "good.example",
        version,
    )
    assert (echo["sni"], echo["destination"]) == ("good.example", [address, 443])
    assert echo["body"] == {"size": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}
    assert ["x-odd", "yes"] in echo["headers"]
    (request,) = lab.origin.requests()
    assert {**echo, **request} == echo
    assert lab.origin.connections()[0]["destination"] == [address, 443]


def test_plain_http_is_served_on_two_ports(lab):
    for port in 80, 8080:
        assert json.loads(curl(lab, f"http://good.example:{port}/echo").stdout)["destination"][1] == port
    assert [request["sni"] for request in lab.origin.requests()] == [None, None]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("page", ["bytes", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 65536, 3_000_001])
def test_response_bodies_arrive_whole(lab, version, page, size):
    out = lab.workspace() / "body"
    assert curl(lab, version, "-o", out, f"https://good.example/{page}/{size}").returncode == 0
    assert out.stat().st_size == size
    assert out.read_bytes() == (PATTERN * (size // len(PATTERN) + 1))[:size]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_upload_arrives_whole(lab, version):
    body = lab.workspace() / "upload"
    body.write_bytes(PATTERN * 40)
    done = curl(lab, version, "-T", body, "https://good.example/upload")
    assert json.loads(done.stdout) == {"size": len(PATTERN) * 40, "sha256": hashlib.sha256(PATTERN * 40).hexdigest()}


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_slow_and_event_streams_arrive_complete(lab, version):
    assert curl(lab, version, "-N", "https://good.example/slow/3/0.05").stdout == "0\n1\n2\n"
    assert curl(lab, version, "-N", "https://good.example/events/2").stdout.count("data: event") == 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_reset_page_resets_the_connection(lab, scheme):
    done = curl(lab, "--http1.1", "-o", "/dev/null", f"{scheme}://good.example/reset/1000")
    assert done.returncode == 56, done.stderr  # CURLE_RECV_ERROR
    assert "reset by peer" in done.stderr


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cut_page_ends_the_connection_without_a_reset(lab, scheme):
    done = curl(lab, "--http1.1", "-o", "/dev/null", f"{scheme}://good.example/cut/1000")
    assert done.returncode == 18, done.stderr  # CURLE_PARTIAL_FILE


def test_reset_and_cut_pages_break_an_http2_transfer(lab):
    for page in "reset", "cut":
        assert curl(lab, "--http2", "-o", "/dev/null", f"https://good.example/{page}/1000").returncode != 0


def test_status_and_redirect_pages_answer_as_documented(lab):
    def status(*arguments):
        return curl(lab, "-o", "/dev/null", "-w", "%{http_code}", *arguments).stdout

    assert status("https://good.example/status/418") == "418"
    assert status("https://good.example/bytes/x") == "400"
    assert status("-I", "https://good.example/bytes/10") == "200"
    assert curl(lab, "-L", "https://good.example/redirect?to=http%3A//four.example/").stdout.endswith("four.example\n")


def test_connections_are_kept_alive(lab):
    curl(lab, "--http1.1", "https://good.example/1", "https://good.example/2")
    curl(lab, "--http2", "https://good.example/3", "https://good.example/4")
    assert len(lab.origin.requests()) == 4
    assert len(lab.origin.connections()) == 2


@pytest.mark.parametrize("name", ["self-signed.example", "expired.example", "wrong.example"])
def test_bad_certificates_are_rejected_by_curl(lab, name):
    assert curl(lab, f"https://{name}/").returncode == 60  # CURLE_PEER_FAILED_VERIFICATION
    assert curl(lab, "--insecure", f"https://{name}/").returncode == 0


def test_literal_address_has_a_certificate(lab):
    assert curl(lab, "https://93.184.216.34/").returncode == 0
    assert lab.origin.requests()[0]["sni"] is None


@pytest.mark.parametrize("user", USERS)
def test_python_clients_trust_the_lab_ca(lab, user):
    program = "import urllib.request; print(json.dumps(urllib.request.urlopen('https://good.example/').status))"
    assert python(lab, program, user=user) == 200


# git


@pytest.mark.parametrize("user", USERS)
def test_git_clone_and_push_work(lab, user):
    name = f"acme/web-{user or 0}"
    lab.make_repository(name, {"README": "first\n", "src/main.py": "pass\n"})
    clone = lab.workspace(user, "clone")
    url = f"https://good.example/{name}.git"
    assert lab.run(["git", "clone", "-q", url, clone], user=user).returncode == 0
    assert (clone / "src/main.py").read_text() == "pass\n"
    (clone / "README").write_text("second\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    for arguments in (["commit", "-qam", "second"], ["push", "-q", "origin", "main"]):
        done = lab.run(["git", "-c", f"safe.directory={clone}", *identity, *arguments], user=user, cwd=clone)
        assert done.returncode == 0, done.stderr
    remote_head = lab.run(["git", "ls-remote", url, "refs/heads/main"], user=user).stdout.split()[0]
    assert remote_head == lab.run(["git", "rev-parse", "HEAD"], user=user, cwd=clone).stdout.strip()
    services = [request["target"].rpartition("/")[2] for request in lab.origin.requests()]
    assert "git-receive-pack" in services


# DNS


def addresses(lab, name, *, user=None):
    program = "print(json.dumps(sorted({one[4][0] for one in socket.getaddrinfo(sys.argv[1], 443)})))"
    return python(lab, program, name, user=user)


def lookup(lab, name, kind, *, tcp=False):
    """Query the DNS server; return rcode, flags and data."""
    program = (
        "import dns.message, dns.query, dns.flags, dns.rcode\n"
        "ask = dns.query.tcp if sys.argv[3] == 'True' else dns.query.udp\n"
        "reply = ask(dns.message.make_query(sys.argv[1], sys.argv[2]), '203.0.113.53', timeout=5)\n"
        "data = [one.to_text() for rrset in reply.answer for one in rrset]\n"
        "print(json.dumps([dns.rcode.to_text(reply.rcode()), dns.flags.to_text(reply.flags), data]))"
    )
    code, flags, data = python(lab, program, name, kind, str(tcp))
    return code, flags.split(), data


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good.example", ["2606:2800:220:1::1", "93.184.216.34"]),
        ("a.b.wild.example", ["93.184.216.36"]),
        ("alias.example", ["93.184.216.35"]),
        ("big.example", ["93.184.216.38"]),
        ("listed.example", ["2606:2800:220:1::40", "93.184.216.40"]),
        ("inside.example", ["10.0.0.1", "64:ff9b::a9fe:a9fe", "::ffff:10.0.0.1"]),
    ],
)
def test_names_resolve_as_the_table_says(lab, user, name, expected):
    assert addresses(lab, name, user=user) == expected


def test_queries_are_recorded_and_hosts_file_names_make_none(lab):
    addresses(lab, "good.example")
    addresses(lab, "listed.example")
    assert sorted(lab.origin.queries()) == [("good.example", "A", "udp"), ("good.example", "AAAA", "udp")]
    assert lab.origin.queries("four.example") == []


def test_rebinding_name_changes_between_lookups(lab):
    turns = [addresses(lab, "rebinds.example") for _ in range(4)]
    assert turns == [["93.184.216.37"], ["169.254.169.254"], ["127.0.0.1", "::1"], ["127.0.0.1", "::1"]]


def test_dns_errors_are_answered_as_configured(lab):
    assert lookup(lab, "missing.example", "A")[0] == "NXDOMAIN"
    assert lookup(lab, "servfail.example", "A")[0] == "SERVFAIL"
    assert lookup(lab, "good.example", "MX") == ("NOERROR", ["QR", "RD", "RA"], [])
    assert "TC" in lookup(lab, "big.example", "TXT")[1]
    assert sorted(lookup(lab, "big.example", "TXT", tcp=True)[2]) == ['"one"', '"two"']
    assert ("big.example", "TXT", "tcp") in lab.origin.queries()
    program = "try: print(json.dumps(socket.getaddrinfo('silent.example', 1)))\nexcept OSError as error: print(json.dumps(error.errno))"
    assert python(lab, program) == socket.EAI_AGAIN


def test_dns_table_can_be_replaced(lab):
    lab.origin.name({"good.example": Name.at("1.1.1.1")})
    assert addresses(lab, "good.example") == ["1.1.1.1"]
    assert lookup(lab, "four.example", "A")[0] == "NXDOMAIN"


# Packets, datagrams and other services


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "10.9.8.7", "169.254.169.254", "100.64.0.1", "2606:4700::1", "64:ff9b::a9fe:a9fe", "fd00::1"]
)
def test_every_outside_address_answers_and_counts_packets(lab, address):
    assert lab.origin.packets_to(address) == 0
    url = f"http://[{address}]/echo" if ":" in address else f"http://{address}/echo"
    assert json.loads(curl(lab, url).stdout)["destination"] == [address, 80]
    assert lab.origin.packets_to(address) > 0
    assert lab.origin.packets_to("1.2.3.4") == 0


def test_packets_without_a_listener_are_counted(lab):
    program = (
        "raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132); raw.sendto(bytes(12), ('7.7.7.1', 0))\n"
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.sendto(b'x', ('7.7.7.2', 4321))\n"
        "print(json.dumps(socket.socket().connect_ex(('7.7.7.3', 4322))))"
    )
    python(lab, program)
    found = {(one.destination, one.protocol, one.port) for one in lab.origin.packets()}
    assert found >= {("7.7.7.1", 132, 0), ("7.7.7.2", 17, 4321), ("7.7.7.3", 6, 4322)}


def test_datagrams_are_recorded_by_the_udp_sink(lab):
    program = "udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); udp.sendto(b'quic', ('2606::1', 443)); print(1)"
    python(lab, program, user=Lab.ORDINARY)
    assert [(one["port"], one["size"]) for one in lab.origin.datagrams()] == [(443, 4)]


def test_server_that_speaks_first_echoes(lab):
    program = (
        "sock = socket.create_connection(('good.example', 5432)); first = sock.recv(100).decode()\n"
        "sock.sendall(b'echo'); print(json.dumps([first, sock.recv(100).decode()]))"
    )
    assert python(lab, program)[1] == "echo"
    assert lab.origin.connections()[-1]["destination"][1] == 5432


def test_host_loopback_has_services_and_a_recorder(lab):
    assert lab.loopback.packets_to("127.0.0.1", "::1") == 0
    assert json.loads(curl(lab, "-4", "https://here.example/echo").stdout)["destination"] == ["127.0.0.1", 443]
    assert lab.loopback.packets_to("127.0.0.1") > 0
    assert lab.loopback.requests()[0]["authority"] == "here.example"
    assert lab.origin.requests() == []
    assert lab.origin.packets_to("127.0.0.1") == 0


def test_lost_packets_raise_an_error(lab):
    program = (
        "from tests.lab import recorder; recorder._BUFFER = 2048; one = recorder.Recorder('lo')\n"
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(200): udp.sendto(bytes(500), ('127.0.0.1', 9))\n"
        "try: print(json.dumps(one.packets()))\nexcept RuntimeError as error: print(json.dumps(str(error)))"
    )
    done = lab.run(
        ["python", "-c", f"import json, socket\n{program}"], env={"PYTHONPATH": str(Path(__file__).parents[2])}
    )
    assert "the count proves nothing" in done.stdout, done.stderr


def test_another_server_can_be_started_among_the_origins(lab):
    site = lab.workspace(name="site")
    (site / "hello").write_text("from elsewhere\n")
    command = [sys.executable, "-m", "http.server", "--directory", site, "--bind", "0.0.0.0", "7070"]
    with lab.start_at_origin(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        done = curl(lab, "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://8.8.8.8:7070/hello")
        server.kill()
    assert done.stdout == "from elsewhere\n"
