"""Syslog exporter with a real rsyslogd that is killed and restarted, and with receivers that leave data unread."""

import contextlib
import socket
import ssl
import struct
import threading

import pytest

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Destination, Kind, Process, Tls
from proxy.telemetry.exporters import syslog
from proxy.telemetry.exporters.exporter import FORMATS, Item, UnavailableError
from proxy.telemetry.exporters.syslog import SyslogExporter
from proxy.telemetry.formats.decoded_event import read
from proxy.telemetry.journal.bookmark import Bookmark, Reader
from tests.lab.certificates import Authority
from tests.proxy.telemetry.exporters.export_lab import (
    Rsyslog,
    free_port,
    ids,
    in_order,
    run_continuously,
    run_once,
    write,
)
from tests.support.telemetry_lab import full_event
from tests.support.waiting import PATIENCE, wait_until


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A CA, and a certificate with its key for this host."""
    directory, authority = tmp_path_factory.mktemp("tls"), Authority.make()
    (directory / "ca.pem").write_bytes(authority.pem())
    (directory / "leaf.pem").write_bytes(authority.leaf("127.0.0.1", "localhost"))
    return directory / "ca.pem", directory / "leaf.pem"


@pytest.mark.parametrize("scheme", ["syslog+tcp", "syslog+tls"])
def test_killed_rsyslogd_has_all_events_in_order_in_the_end(scheme, tmp_path, tls):
    """Both sides are killed in turn, with SIGKILL, while events are written."""
    journal = tmp_path / "journal"
    write(journal, expected := ids(400))
    receiver = Rsyslog(tmp_path, free_port(), (tls[0], tls[1], tls[1]) if scheme.endswith("tls") else None)
    words = ("--to", f"{scheme}://127.0.0.1:{receiver.port}", "--journal", journal)
    words += ("--ca", tls[0]) if scheme.endswith("tls") else ()
    try:
        for turn in range(3):
            receiver.start()
            with run_continuously(*words, home=tmp_path):
                seen = len(receiver.messages())
                write(journal, more := ids(300))
                expected += more
                wait_until(lambda before=seen: len(receiver.messages()) > before, "the first message")
                if turn < 2:
                    receiver.kill()
        done = run_once(*words, home=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert in_order(receiver.ids(), expected)
    finally:
        receiver.kill()


@pytest.fixture
def items(tmp_path):
    write(tmp_path / "journal", ids(60))
    lines = Reader(tmp_path / "journal", Bookmark(tmp_path / "position.json")).read()
    return [Item(line.line, read(line.line)) for line in lines]


@contextlib.contextmanager
def answering(*scripts):
    """A server that runs one script a connection, and then takes no more."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        for number, script in enumerate(scripts, start=1):
            connection, _ = server.accept()
            if number == len(scripts):
                server.close()  # a process that dies closes it before any connection: it has the lower number
            script(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    thread.join(PATIENCE)


def reads_all(connection):
    with connection:
        while connection.recv(65536):
            pass


def is_killed_before_it_reads(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def ends_with_something_unread(connection):
    with connection:
        connection.recv(100)


def ends_at_once(connection):
    connection.close()


def ends_its_side_and_reads_nothing(connection):
    connection.shutdown(socket.SHUT_WR)
    connection.recv(100)
    connection.close()


BAD = [is_killed_before_it_reads, ends_with_something_unread, ends_at_once, ends_its_side_and_reads_nothing]


@pytest.mark.parametrize("script", BAD)
def test_unread_messages_do_not_count_as_delivered(script, items, monkeypatch):
    monkeypatch.setattr(syslog, "_TIMEOUT", 1.0)
    with answering(script) as port, pytest.raises(UnavailableError):
        SyslogExporter("127.0.0.1", port, FORMATS["event"]).send(items)


def test_receiver_that_ends_after_reading_does_not_count(items):
    """A receiver killed with unsaved messages: the next connection fails."""
    with answering(reads_all) as port, pytest.raises(UnavailableError):
        SyslogExporter("127.0.0.1", port, FORMATS["event"]).send(items)


def test_receiver_that_never_closes_times_out(items, monkeypatch):
    monkeypatch.setattr(syslog, "_TIMEOUT", 0.5)
    over = threading.Event()
    with answering(lambda connection: over.wait(PATIENCE) and connection.close()) as port:
        with pytest.raises(UnavailableError, match="timed out"):
            SyslogExporter("127.0.0.1", port, FORMATS["event"]).send(items)
        over.set()


def test_connection_closed_while_idle_is_reopened(items):
    tired = threading.Event()

    def ends_when_tired(connection):
        tired.wait(PATIENCE)
        connection.close()

    with answering(reads_all, ends_when_tired, reads_all, reads_all) as port:
        sink = SyslogExporter("127.0.0.1", port, FORMATS["event"])
        sink.send(items)
        tired.set()
        wait_until(lambda: not _idle(sink), "the end of the idle connection")
        sink.send(items)
        sink._next_connection.close()


def _idle(sink):
    sink._next_connection.setblocking(False)
    try:
        return bool(sink._next_connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    finally:
        sink._next_connection.settimeout(PATIENCE)


def test_tls_receiver_without_close_notify_does_not_count(items, tls):
    """Anyone on the path could have closed the TCP connection."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tls[1])

    def ends_without_saying_so(connection):
        secured = own.wrap_socket(connection, server_side=True)
        with contextlib.suppress(OSError):
            while secured.recv(65536):
                pass
        connection = socket.socket(fileno=secured.detach())
        connection.close()

    context = ssl.create_default_context(cafile=tls[0])
    with answering(ends_without_saying_so, reads_all) as port:
        sink = SyslogExporter("127.0.0.1", port, FORMATS["event"], context)
        with pytest.raises(UnavailableError):
            sink.send(items)
        socket.create_connection(("127.0.0.1", port)).close()


def test_tls_receiver_with_another_name_is_refused(items, tls):
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tls[1])

    def refused(connection):
        with contextlib.suppress(OSError):
            own.wrap_socket(connection, server_side=True)
        connection.close()

    with answering(refused) as port, pytest.raises(UnavailableError, match="certificate"):
        SyslogExporter("127.0.0.1", port, FORMATS["event"], ssl.create_default_context()).send(items)


@pytest.mark.parametrize("shape", FORMATS)
def test_long_events_are_shortened_to_the_message_limit(shape, tmp_path):
    write(tmp_path / "journal", expected := ids(1), "\U0001f4a9" * 1000, Kind.REQUEST_DECIDED)
    (_, line) = Reader(tmp_path / "journal", Bookmark(tmp_path / "position.json")).read()
    message = SyslogExporter("127.0.0.1", 1, FORMATS[shape])._message(Item(line.line, read(line.line)))
    assert len(message) <= 8192
    assert expected[0].encode() in message


@pytest.mark.parametrize("shape", FORMATS)
@pytest.mark.parametrize("word", ["\U0001f4a9", "é", "\\", '"', "="])
def test_long_texts_of_a_task_never_displace_destination_or_rule(shape, word):
    """A task chooses the length of its arguments and paths."""
    name = f"{'x.' * 119}drop.example"
    output = full_event(Kind.CONNECTION_DECIDED)._replace(
        destination=Destination(name, "93.184.216.34", 443),
        process=Process(7, word * 4096, (word * 4096,) * 8, 1000, (word * 4096,) * 8, (6,)),
        tls=Tls(name, (word * 255,) * 16, "TLSv1.3"),
        **dict.fromkeys(("dns", "http", "agent", "git", "journal", "approval", "unusual", "fault")),
    )
    line = encode(output)
    message = SyslogExporter("127.0.0.1", 1, FORMATS[shape])._message(Item(line, read(line)))
    assert len(message) <= 8192
    assert name.encode() in message
    assert b"web:pages" in message
