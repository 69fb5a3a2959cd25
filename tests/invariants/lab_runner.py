"""Runs `exeat run` in the lab, and reads its journal and metrics."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab import Lab
from tests.support.harness import whole_lines

from .task import attempts

PYTHON = Path(sys.base_prefix) / "bin" / "python3"
TASK = Path(__file__).with_name("task")
LIBRARIES = Path(sys.prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
RULESET_REASONS = {"udp", "quic", "icmp"}
# For decisions of the gate, which do not depend on the user: only as an ordinary user.
only_as_ordinary_user = pytest.mark.parametrize(
    "runner", [pytest.param("user", marks=pytest.mark.xdist_group("invariants-user"))], indirect=True
)
EXEAT = ("exeat",)
SIGNER_DESCRIPTORS = 8  # the certificate signer has at most this many descriptors open, a worker more
DECISIONS = ("connection.decided", "request.decided", "dns.decided")


@dataclass(frozen=True)
class LabRunner:
    """A lab and the user that runs tasks in it: root (None) or an ordinary user."""

    lab: Lab
    user: int | None

    def rules(self, text: str, name: str = "rules.yaml") -> Path:
        """Write a rule file."""
        path = self.lab.home(self.user) / name
        path.write_text(text)
        os.chown(path, self.user or 0, self.user or 0)
        return path

    def workspace(self, name: str) -> Path:
        """Return a directory for a task, with the modules of the attempts in it."""
        work = self.lab.workspace(self.user, name)
        if not (work / "task").exists():
            shutil.copytree(TASK, work / "task", ignore=shutil.ignore_patterns("__pycache__"))
        for path in [work, *work.rglob("*")]:
            os.chown(path, self.user or 0, self.user or 0)
        return work

    def command_line(
        self, name: str, rules: Path, *command: object, options: Iterable[object] = (), program: Iterable[str] = EXEAT
    ) -> list[str]:
        """Return the command line of a run with its own journal and without an approvals server."""
        self._disable_approvals()
        shown = ["--read", sys.base_prefix, "--read", LIBRARIES]
        journal = ["--journal", self.journal(name)]
        return [*map(str, [*program, "run", "--rules", rules, *shown, *journal, *options, "--", *command])]

    def _disable_approvals(self) -> None:
        """Prevent the start of an approvals server: `ask` is denied at once, and no process outlives a test."""
        home, above = self.lab.home(self.user), Path(".local/state/exeat")
        if (home / above / "approvals").exists():
            return
        for part in (*reversed(above.parents[:-1]), above):
            (home / part).mkdir(mode=0o700, exist_ok=True)
            os.chown(home / part, self.user or 0, self.user or 0)
        (home / above / "approvals").write_text("not a directory")

    def journal(self, name: str) -> Path:
        """Return the journal directory of a run."""
        return self.lab.home(self.user) / f"journal-{name}"

    def run(self, name: str, rules: Path, *command: object, options: Iterable[object] = (), **more) -> "FinishedRun":
        """Run a task until it ends."""
        words = self.command_line(name, rules, *command, options=options)
        done = self.lab.run(words, user=self.user, cwd=self.workspace(name), **{"timeout": 100, **more})
        return FinishedRun(done, Journal(self.journal(name)))

    @contextlib.contextmanager
    def start(
        self,
        name: str,
        rules: Path,
        *command: object,
        options: Iterable[object] = (),
        program: Iterable[str] = EXEAT,
        **more,
    ):
        """Start a task; kill it on exit unless it has ended."""
        words = self.command_line(name, rules, *command, options=options, program=program)
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with self.lab.start(words, user=self.user, cwd=self.workspace(name), **{**streams, **more}) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextlib.contextmanager
    def start_steps(
        self, name: str, rules: Path, module: str, *arguments: object, options: Iterable[object] = (), **more
    ):
        """Start `task.MODULE`, which runs one step per line of input; close its input on exit and expect status 0."""
        command = (PYTHON, "-m", f"task.{module}", *arguments)
        with self.start(name, rules, *command, options=options, **more) as process:
            yield Steps(process)
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
            assert "the gate ended unexpectedly" not in error

    def scrape(self, port: int, host: str = "127.0.0.1") -> "Scrape":
        """Read `--metrics` from the host side."""
        done = self.lab.run(["curl", "-sS", "--fail", "--max-time", "20", f"http://{host}:{port}/metrics"])
        assert done.returncode == 0, done.stderr
        return Scrape(done.stdout)

    def run_python(self, name: str, rules: Path, program: str, *arguments: object, **more) -> "FinishedRun":
        """Run a Python program in a sandbox; it can import the modules of the attempts."""
        return self.run(name, rules, PYTHON, "-c", program, *arguments, **more)


class Journal:
    """The events of a run's journal, sorted by time."""

    def __init__(self, directory: Path) -> None:
        self.events = []
        for segment in sorted(directory.glob("*/*.jsonl")):
            recorded = [json.loads(line) for line in whole_lines(segment)]
            self.events += [event for event in recorded if not event["kind"].startswith("journal.")]
        self.events.sort(key=lambda event: event["time"])

    def of(self, **expected: object) -> list[dict]:
        """Return the events whose fields have these values; `destination__name` is the field `destination.name`."""
        return [event for event in self.events if all(_field(event, key) == value for key, value in expected.items())]

    def decisions(self) -> list[dict]:
        """Return every decision event."""
        return [event for event in self.events if event["kind"] in DECISIONS]

    def decisions_during(self, attempt: str) -> list[dict]:
        """Return the decisions between the two marks of an attempt, without packets that the ruleset refused.

        Those are recorded when the kernel log is read, which may be later.
        """
        slug = attempt.replace("_", "-")
        begin, end = (
            next(
                at
                for at, event in enumerate(self.events)
                if _field(event, "dns__question") == f"{word}--{slug}.{attempts.MARKS}"
            )
            for word in ("begin", "end")
        )
        between = [event for event in self.events[begin + 1 : end] if event["kind"] in DECISIONS]
        return [each for each in between if each["reason"] not in RULESET_REASONS]


class Steps:
    """A running task that executes steps one by one when the test requests them."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def __call__(self, step: str, *arguments: object):
        """Execute one step and return its result."""
        self.process.stdin.write(json.dumps([step, *arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)


class Scrape:
    """One scrape of the metrics, parsed."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))

    def of(self, name: str, *labels: str) -> dict[tuple[str, ...], int]:
        """Return the non-zero samples of a metric, by the values of these labels."""
        samples = [sample for family in self.families for sample in family.samples if sample.name == name]
        return {
            tuple(sample.labels[label] for label in labels): int(sample.value) for sample in samples if sample.value
        }


@dataclass(frozen=True)
class FinishedRun:
    """Process and journal of a finished run."""

    process: subprocess.CompletedProcess
    journal: Journal

    @property
    def output(self):
        """Return the output of the task, parsed as JSON."""
        assert self.process.returncode == 0, self.process.stderr
        return json.loads(self.process.stdout)


def _field(event: Mapping, path: str):
    value: object = event
    for part in path.split("__"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def summary(event: Mapping) -> tuple[str, str, str]:
    """Return kind, outcome and reason of a decision."""
    return event["kind"].partition(".")[0], event["outcome"], event["reason"]


def worker_of(process: subprocess.Popen) -> int:
    """Return the pid of the worker: the child of `exeat run` that leads its own session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == process.pid and int(fields[3]) == int(entry):
                    found.append(int(entry))
    here = [pid for pid in found if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")]
    (worker,) = [pid for pid in here if descriptors(pid) > SIGNER_DESCRIPTORS]
    return worker


def wait_until_dead(pid: int) -> None:
    """Wait until a killed process has released its resources, whether or not its parent has reaped it."""
    with contextlib.suppress(OSError):
        # The first thread may have ended while another, which holds the same descriptors, has not.
        while (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            or len(os.listdir(f"/proc/{pid}/task")) > 1
        ):
            time.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))
