"""`exeat export` as a program: killed and restarted, with real receivers, and with invalid arguments."""

import contextlib
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from proxy.telemetry.exporters.delivery import METRICS
from tests.proxy.telemetry.exporters.export_lab import free_port, ids, in_order, run_continuously, run_once, write
from tests.support import harness
from tests.support.waiting import wait_until


class Keeper(ThreadingHTTPServer):
    """Receiver of lines or OTLP that answers once it has stored the events. A kill loses the request in progress."""

    def __init__(self, port):
        self.ids, self.dies, self.lock = [], False, threading.Lock()
        super().__init__(("127.0.0.1", port), Asked)

    def handle_error(self, request, client_address):
        """A client that goes away is no news."""


class Asked(BaseHTTPRequestHandler):
    def do_POST(self):
        length = self.headers["Content-Length"]
        body = self.rfile.read(int(length)) if length else self._chunks()
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        if self.server.dies:  # before it has them, or before it could say so
            with self.server.lock:
                self.server.ids += _ids(self.headers["Content-Type"], body) if len(self.server.ids) % 2 else []
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        with self.server.lock:
            self.server.ids += _ids(self.headers["Content-Type"], body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


def _ids(kind, body):
    if kind != "application/x-protobuf":
        return [json.loads(line)["id"] for line in body.splitlines()]
    made = ExportLogsServiceRequest.FromString(body)
    logs = [log for resource in made.resource_logs for scope in resource.scope_logs for log in scope.log_records]
    return [pair.value.string_value for log in logs for pair in log.attributes if pair.key == "exeat.id"]


@contextlib.contextmanager
def keeping(port=0):
    server = Keeper(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("scheme", ["otlp+http", "http"])
def test_all_events_arrive_in_order_after_kills_on_both_sides(scheme, tmp_path):
    journal, port = tmp_path / "journal", free_port()
    write(journal, wanted := ids(1500))
    words = ("--to", f"{scheme}://127.0.0.1:{port}", "--journal", journal)
    got = []
    for turn in range(3):
        with keeping(port) as server, run_continuously(*words, home=tmp_path):
            write(journal, more := ids(100))
            wanted += more
            wait_until(lambda server=server: server.ids or server.dies, "the first message")
            server.dies = turn < 2
            time.sleep(0.05 * turn)
        got += server.ids
    with keeping(port) as server:
        done = run_once(*words, home=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        got += server.ids
    assert in_order(got, wanted)
    (position,) = tmp_path.glob("state/exeat/keeper/*/sinks/*.json")
    assert position.stat().st_mode & 0o777 == 0o600


def test_opentelemetry_collector_forwards_exported_logs(tmp_path):
    """rotel, an OpenTelemetry collector: our protobuf in, its own out, to a receiver that reads the definition's."""
    try:
        import rotel
    except ImportError:
        harness.missing("rotel")
    program = Path(rotel.__file__).with_name("rotel-agent")
    libraries = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}  # it carries a Python of its own version
    if subprocess.run([program, "--version"], env=libraries, capture_output=True).returncode:
        harness.missing("the Python library that rotel needs")
    write(tmp_path / "journal", wanted := ids(300))
    port = free_port()
    with keeping() as server:
        words = [
            program, "start", "--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", "127.0.0.1:0",
            "--exporter", "otlp", "--otlp-exporter-protocol", "http", "--batch-timeout", "100ms",
            "--otlp-exporter-endpoint", f"http://127.0.0.1:{server.server_port}",
        ]  # fmt: skip
        collector = subprocess.Popen(words, env=libraries, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: _listens(port), "the start of the collector")
            done = run_once("--to", f"otlp+http://127.0.0.1:{port}", "--journal", tmp_path / "journal", home=tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            wait_until(lambda: set(wanted) <= set(server.ids), "the forwarding of all events")
        finally:
            collector.kill()
            collector.wait()


def _listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_second_export_of_a_bookmark_is_refused_and_metrics_served(tmp_path):
    write(tmp_path / "journal", wanted := ids(3))
    port, out = free_port(), tmp_path / "out"
    words = ("--to", f"file:{out}", "--format", "event", "--journal", tmp_path / "journal")
    with run_continuously(*words, "--metrics", f"127.0.0.1:{port}", home=tmp_path):
        wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") == 4, "the output of four lines")
        done = run_once(*words, home=tmp_path)
        assert done.returncode == 125
        assert "another `exeat export` delivers from" in done.stderr
        wait_until(lambda: _listens(port), "the start of the metrics server")
        wait_until(lambda: 'exeat_exported_total{sink="file"} 4\n' in _scraped(port), "the count of four events")
        assert 'exeat_journal_lag_seconds{sink="file"}' in _scraped(port)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()][1:] == wanted


def _scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_once_fails_for_an_unavailable_receiver_and_keeps_the_bookmark(tmp_path):
    write(tmp_path / "journal", wanted := ids(3))
    port = free_port()
    words = ("--to", f"http://127.0.0.1:{port}/in", "--journal", tmp_path / "journal")
    done = run_once(*words, home=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"exeat: 127.0.0.1:{port}: Connection refused\n")
    assert len(list(tmp_path.glob("state/exeat/keeper/*/sinks/*.json"))) == 1  # there retention looks, from the start
    with keeping(port) as server:
        assert run_once(*words, home=tmp_path).returncode == 0
        assert server.ids[1:] == wanted


REFUSED = [
    ("ftp://a.example", "begins with none of"),
    ("https://", "names no host"),
    ("https://a.example:99999", "out of range"),
    ("https://me:hunter2@a.example", "put secrets into --token-file"),
    ("https://a.example/?key=hunter2", "put secrets into --token-file"),
    ("file:relative", "not an absolute path"),
    ("otlp+https://a.example --format ecs", "OTLP has a format of its own"),
    ("syslog+tls://a.example --token-file /t", "no place for a token"),
    ("otlp+https://a.example --sign-with /t", "only webhooks are signed"),
    ("http://a.example --ca /t", "in the clear"),
    ("http://a.example --token-file /t", "sent in the clear"),
    ("https://a.example --ca /nowhere/ca.pem", "cannot use `/nowhere/ca.pem`"),
    ("file:/tmp/x --token-file /t", "--token-file can't be used with a file"),
    ("file:/tmp/x --journal /nowhere", "there is no journal"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=[row[0] for row in REFUSED])
def test_invalid_options_are_refused_before_anything_is_sent(words, says, tmp_path, capsys, monkeypatch):
    from enforcer.cli import main

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(os, "umask", lambda mask: mask)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    assert main(["export", "--once", "--to", *words.split()]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "hunter2" not in said
    assert sys.dont_write_bytecode  # under the umask of an export no worker could read it


def test_unreadable_bookmark_is_reported_and_nothing_sent(tmp_path):
    write(tmp_path / "journal", ids(1))
    (tmp_path / "position.json").write_text("{}")
    done = run_once(
        "--to",
        f"file:{tmp_path}/out",
        "--journal",
        tmp_path / "journal",
        "--position",
        tmp_path / "position.json",
        home=tmp_path,
    )
    assert done.returncode == 125
    assert "is not a bookmark" in done.stderr
    assert "move it away to begin anew" in done.stderr
    assert not (tmp_path / "out").exists()


def test_documented_export_metrics_are_the_exported_ones():
    page = (harness.PROJECT / "docs/reference/exporters.md").read_text()
    rows = re.findall(r"^\| `(exeat_\w+)` \| (\w+) \| (.*) \|$", page, flags=re.MULTILINE)
    assert rows == list(METRICS)
