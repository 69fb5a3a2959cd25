"""A PostgreSQL server of our own for a test session: an ordinary user's, on a unix socket, in a directory of its own."""

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support import harness


class Server:
    """One server. `url` leads to its database."""

    def __init__(self):
        found = [*sorted(glob.glob("/usr/lib/postgresql/*/bin")), os.path.dirname(shutil.which("initdb") or "")]
        bin_ = next((Path(place) for place in found if place and os.access(f"{place}/initdb", os.X_OK)), None)
        if bin_ is None:
            harness.missing("PostgreSQL")
        self._base = Path(tempfile.mkdtemp(prefix="exeat-pg-"))
        self._base.chmod(0o755)
        self._who = {}
        if os.geteuid() == 0:  # which it refuses to run as
            someone = pwd.getpwnam("nobody")  # initdb wants one that has a name
            os.chown(self._base, someone.pw_uid, someone.pw_gid)
            self._who = {"user": someone.pw_uid, "group": someone.pw_gid, "extra_groups": []}
        data = self._base / "data"
        words = [
            bin_ / "initdb",
            "-D",
            data,
            "-A",
            "trust",
            "-U",
            "exeat",
            "--no-sync",
            "--no-instructions",
            "-E",
            "UTF8",
        ]
        subprocess.run(
            words,
            check=True,
            capture_output=True,
            cwd="/",
            env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
            **self._who,
        )
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._base),
            "fsync": "off",
            "autovacuum": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._log = open(self._base / "log", "ab")  # noqa: SIM115  until it is stopped
        self._argv = [bin_ / "postgres", "-D", data, *options]
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            self._argv, stdout=self._log, stderr=self._log, cwd="/", env={"LC_ALL": "C"}, **self._who
        )
        until = time.monotonic() + 60
        while b"ready to accept connections" not in (log := (self._base / "log").read_bytes()):
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.decode())
            time.sleep(0.05)

    def url(self, database="postgres"):
        return f"postgresql://exeat@/{database}?host={self._base}"

    def kill(self):
        """Have it end at once, as by a crash of its host."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)
        os.truncate(self._base / "log", 0)

    def stop(self):
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)
        self._log.close()
        shutil.rmtree(self._base)
