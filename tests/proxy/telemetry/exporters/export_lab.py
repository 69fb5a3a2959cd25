"""Lab for exporters: journals with numbered events, a real rsyslogd, and the export command."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import IdMaker, Kind
from proxy.telemetry.journal.writer import Journal
from tests.support.telemetry_lab import full_event, missing
from tests.support.waiting import PATIENCE, wait_until

_ids = IdMaker()


def ids(count):
    return [_ids.make() for _ in range(count)]


def write(journal, names, text="text", kind=Kind.CONNECTION_DECIDED):
    """Add an event for each id."""
    writer = Journal(journal)
    for name in names:
        event = full_event(kind, text, time.time_ns())._replace(id=name, journal=None)
        writer.append(encode(event), event.time)
    writer.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def command(*words, home):
    return {
        "args": [str(Path(sys.executable).with_name("exeat")), "export", *map(str, words)],
        "env": {**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")},
        "stdin": subprocess.DEVNULL,
    }


def run_once(*words, home):
    return subprocess.run(**command("--once", *words, home=home), capture_output=True, text=True, timeout=PATIENCE)


@contextlib.contextmanager
def run_continuously(*words, home):
    """Run `exeat export` until the end of the block, then kill it."""
    process = subprocess.Popen(**command(*words, home=home), stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def in_order(got, expected):
    """Whether all wanted items arrived, and new ones in order; repeated items are ignored."""
    return [each for each in dict.fromkeys(got) if each in set(expected)] == list(expected)


class Rsyslog:
    """Real rsyslogd, which writes each message to a file before it reads the next."""

    def __init__(self, directory, port, tls=None):
        self.out, self.port = directory / "out", port
        self._directory, self._process = directory, None
        self._program = shutil.which("rsyslogd", path=f"{os.environ['PATH']}:/usr/sbin") or missing(
            "`rsyslogd` is not installed"
        )
        if tls and not any(Path("/usr/lib").glob("*/rsyslog/lmnsd_ossl.so")):
            missing("rsyslog-openssl is not installed")
        driver = ""
        secure = ""
        if tls:
            driver = f'DefaultNetstreamDriverCAFile="{tls[0]}" DefaultNetstreamDriverCertFile="{tls[1]}" DefaultNetstreamDriverKeyFile="{tls[2]}" defaultNetstreamDriver="ossl" '
            secure = 'StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="anon" '
        (directory / "rsyslog.conf").write_text(
            f'global(workDirectory="{directory}" {driver}maxMessageSize="64k")\n'
            'main_queue(queue.type="Direct")\n'
            f'module(load="imtcp" {secure})\n'
            'template(name="raw" type="string" string="%rawmsg%\\n")\n'
            'ruleset(name="all" queue.type="Direct") '
            f'{{ action(type="omfile" file="{self.out}" template="raw" asyncWriting="off" flushOnTXEnd="on") }}\n'
            f'input(type="imtcp" port="{port}" address="127.0.0.1" ruleset="all")\n'
        )

    def start(self):
        words = [self._program, "-n", "-f", self._directory / "rsyslog.conf", "-i", self._directory / "pid"]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wait_until(self._listens, "the start of rsyslogd")

    def kill(self):
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            (self._directory / "pid").unlink(missing_ok=True)
            self._process = None

    def _listens(self):
        assert self._process.poll() is None, "rsyslogd ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def messages(self):
        return self.out.read_text().splitlines() if self.out.exists() else []

    def ids(self):
        """Ids of the received events in order of arrival, without a line that a kill cut off."""
        found, text = [], self.out.read_text()
        for begins in re.finditer(r'\] (?=\{"time")', text):
            with contextlib.suppress(ValueError):
                found.append(json.JSONDecoder().raw_decode(text, begins.end())[0]["id"])
        return found
