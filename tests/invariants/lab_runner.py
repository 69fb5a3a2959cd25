"""Running `exeat run` in the lab, and reading what its journal and the origin say afterwards."""

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
BY_THE_RULESET = {"udp", "quic", "icmp"}
# For what is decided in the gate, which doesn't know whose task it is: tried as an ordinary user alone.
by_the_gate = pytest.mark.parametrize(
    "place", [pytest.param("user", marks=pytest.mark.xdist_group("invariants-user"))], indirect=True
)
EXEAT = ("exeat",)
KEYHOLDER = 8  # descriptors: it has fewer, and a worker has more
DECISIONS = ("connection.decided", "request.decided", "dns.decided")


@dataclass(frozen=True)
class Place:
    """A lab, and who runs tasks in it: root (None) or an ordinary user."""

    lab: Lab
    user: int | None

    def rules(self, text: str, name: str = "rules.yaml") -> Path:
        """Write a rule file."""
        path = self.lab.home(self.user) / name
        path.write_text(text)
        os.chown(path, self.user or 0, self.user or 0)
        return path

    def workspace(self, name: str) -> Path:
        """A directory for a task, with the attempts in it."""
        work = self.lab.workspace(self.user, name)
        if not (work / "task").exists():
            shutil.copytree(TASK, work / "task", ignore=shutil.ignore_patterns("__pycache__"))
        for path in [work, *work.rglob("*")]:
            os.chown(path, self.user or 0, self.user or 0)
        return work

    def words(
        self, name: str, rules: Path, *command: object, options: Iterable[object] = (), program: Iterable[str] = EXEAT
    ) -> list[str]:
        """The command line of a run whose journal is its own, and where nobody can be asked."""
        self._nobody_to_ask()
        shown = ["--read", sys.base_prefix, "--read", LIBRARIES]
        journal = ["--journal", self.journal(name)]
        return [*map(str, [*program, "run", "--rules", rules, *shown, *journal, *options, "--", *command])]

    def _nobody_to_ask(self) -> None:
        """Have no registry of approvals begin: what rules ask about is denied at once, and no process outlives a test."""
        home, above = self.lab.home(self.user), Path(".local/state/exeat")
        if (home / above / "approvals").exists():
            return
        for part in (*reversed(above.parents[:-1]), above):
            (home / part).mkdir(mode=0o700, exist_ok=True)
            os.chown(home / part, self.user or 0, self.user or 0)
        (home / above / "approvals").write_text("not a directory")

    def journal(self, name: str) -> Path:
        """Where the journal of a run is."""
        return self.lab.home(self.user) / f"journal-{name}"

    def run(self, name: str, rules: Path, *command: object, options: Iterable[object] = (), **more) -> "Done":
        """Run a task to its end."""
        words = self.words(name, rules, *command, options=options)
        done = self.lab.run(words, user=self.user, cwd=self.workspace(name), **{"timeout": 100, **more})
        return Done(done, Journal(self.journal(name)))

    @contextlib.contextmanager
    def running(
        self,
        name: str,
        rules: Path,
        *command: object,
        options: Iterable[object] = (),
        program: Iterable[str] = EXEAT,
        **more,
    ):
        """Start a task; it is over, or killed, afterwards."""
        words = self.words(name, rules, *command, options=options, program=program)
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with self.lab.start(words, user=self.user, cwd=self.workspace(name), **{**streams, **more}) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextlib.contextmanager
    def stepping(self, name: str, rules: Path, module: str, *arguments: object, options: Iterable[object] = (), **more):
        """Start `task.MODULE`, which does one thing for each thing it is told; its input is at its end afterwards."""
        command = (PYTHON, "-m", f"task.{module}", *arguments)
        with self.running(name, rules, *command, options=options, **more) as process:
            yield Steps(process)
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
            assert "the gate ended unexpectedly" not in error

    def scrape(self, port: int, host: str = "127.0.0.1") -> "Scrape":
        """What `--metrics` says, asked from the host's side."""
        done = self.lab.run(["curl", "-sS", "--fail", "--max-time", "20", f"http://{host}:{port}/metrics"])
        assert done.returncode == 0, done.stderr
        return Scrape(done.stdout)

    def python(self, name: str, rules: Path, program: str, *arguments: object, **more) -> "Done":
        """Run a few lines in a sandbox. They can import the attempts' own helpers."""
        return self.run(name, rules, PYTHON, "-c", program, *arguments, **more)


class Journal:
    """What a run's gate told."""

    def __init__(self, directory: Path) -> None:
        self.events = []
        for segment in sorted(directory.glob("*/*.jsonl")):
            told = [json.loads(line) for line in whole_lines(segment)]
            self.events += [event for event in told if not event["kind"].startswith("journal.")]
        self.events.sort(key=lambda event: event["time"])

    def of(self, **wanted: object) -> list[dict]:
        """The events whose fields have these values; `destination__name` looks into `destination`."""
        return [event for event in self.events if all(_at(event, key) == value for key, value in wanted.items())]

    def decisions(self) -> list[dict]:
        """Every decision on an attempt."""
        return [event for event in self.events if event["kind"] in DECISIONS]

    def during(self, attempt: str) -> list[dict]:
        """The decisions between an attempt's two marks; but for packets that the ruleset refused.

        Those are told when the kernel's log is read, which is sometime.
        """
        slug = attempt.replace("_", "-")
        begin, end = (
            next(
                at
                for at, event in enumerate(self.events)
                if _at(event, "dns__question") == f"{word}--{slug}.{attempts.MARKS}"
            )
            for word in ("begin", "end")
        )
        between = [event for event in self.events[begin + 1 : end] if event["kind"] in DECISIONS]
        return [each for each in between if each["reason"] not in BY_THE_RULESET]


class Steps:
    """A running task that does one step after the other, in time with the test."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def __call__(self, step: str, *arguments: object):
        """Have it take one step, and return what it saw."""
        self.process.stdin.write(json.dumps([step, *arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)


class Scrape:
    """One scrape, as numbers."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))

    def of(self, name: str, *labels: str) -> dict[tuple[str, ...], int]:
        """The samples of one name that are not 0, by the values of these labels."""
        samples = [sample for family in self.families for sample in family.samples if sample.name == name]
        return {
            tuple(sample.labels[label] for label in labels): int(sample.value) for sample in samples if sample.value
        }


@dataclass(frozen=True)
class Done:
    """A run that is over."""

    process: subprocess.CompletedProcess
    journal: Journal

    @property
    def said(self):
        """What the task printed, as JSON."""
        assert self.process.returncode == 0, self.process.stderr
        return json.loads(self.process.stdout)


def _at(event: Mapping, path: str):
    value: object = event
    for part in path.split("__"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def shape(event: Mapping) -> tuple[str, str, str]:
    """What a decision comes to: kind, outcome, reason."""
    return event["kind"].partition(".")[0], event["outcome"], event["reason"]


def worker_of(process: subprocess.Popen) -> int:
    """The pid of the gate's worker: the child of `exeat run` that leads a session of its own."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == process.pid and int(fields[3]) == int(entry):
                    found.append(int(entry))
    here = [pid for pid in found if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")]
    (worker,) = [pid for pid in here if descriptors(pid) > KEYHOLDER]
    return worker


def wait_until_dead(pid: int) -> None:
    """Wait until a killed process has let go of everything; its parent need not have noticed."""
    with contextlib.suppress(OSError):
        # The first thread may be gone while another, which holds the same descriptors, is still on its way out.
        while (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            or len(os.listdir(f"/proc/{pid}/task")) > 1
        ):
            time.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
