"""How fast the journal is written, verified and searched: `python -m tests.bench.journal [EVENTS] [DIRECTORY]`.

Ten million events by default, over a day, of which one in twenty was blocked; some 8 GB. Written by the gate's own recorder, one
process, one core; then `exeat log verify` and `exeat log --verdict blocked --since 1h` as they are called.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Destination, Event, IdMaker, Kind, Origin, Tls
from proxy.telemetry.journal.writer import Journal
from rules.attempt import Protocol
from rules.verdicts import Mode, Outcome, Reason, Verdict

_HOURS = 24
_BLOCKED_EVERY = 20


def write(directory: Path, count: int) -> float:
    """Write events over the last day; how many a second of CPU that were."""
    journal, ids = Journal(directory), IdMaker()
    origin = Origin.of("t-1", "migrate", {"team": "data"}, "sandbox-t-1", os.uname().nodename)._asdict()
    step = _HOURS * 3600 * 10**9 // count
    now = time.time_ns() - step * count
    began = _cpu()
    for number in range(count):
        blocked = number % _BLOCKED_EVERY == 0
        name = f"host-{number % 200}.example.com"
        event = Event(
            now, ids.make(now), Kind.CONNECTION_DECIDED, **origin,
            verdict=Verdict.DENY if blocked else Verdict.ALLOW,
            outcome=Outcome.BLOCKED if blocked else Outcome.PASSED,
            reason=Reason.NO_RULE if blocked else Reason.RULE,
            rules=() if blocked else ("web:pages",),
            revision="0f" * 32,
            mode=Mode.ENFORCE,
            destination=Destination(name, "93.184.216.34", 443),
            protocol=Protocol.TLS,
            tls=Tls(name, ("h2", "http/1.1"), "1.3"),
        )  # fmt: skip
        journal.append(encode(event), now)
        now += step
    journal.close()
    return count / (_cpu() - began)


def _cpu(whose: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def timed(*words: object) -> tuple[str, int]:
    """Run `exeat log` and return how long that took, of which so much on processors, and how many lines it printed."""
    began, spent = time.monotonic(), _cpu(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", "from enforcer.cli import main; main()", "log", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    took = f"{time.monotonic() - began:.2f} s ({_cpu(resource.RUSAGE_CHILDREN) - spent:.2f} s of CPU)"
    return took, done.stdout.count(b"\n")


def main() -> None:
    """Measure, and say what came of it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as base:
        journal = Path(base) / "journal"
        os.environ["XDG_STATE_HOME"] = base
        print(f"written:  {write(journal, count):,.0f} events a second of one core", flush=True)
        subprocess.run(
            [sys.executable, "-c", "from enforcer.cli import main; main()", "log", "keys", "make"], check=True
        )
        size = sum(path.stat().st_size for path in journal.rglob("*.jsonl"))
        took, _ = timed("verify", "--journal", journal)
        print(f"verified: {count:,} events, {size / 1e9:.1f} GB, in {took}", flush=True)
        words = ("--verdict", "blocked", "--since", "1h", "--format")
        for form in ("table", "jsonl"):
            took, lines = timed("--journal", journal, *words, form)
            print(f"searched: {' '.join(words)} {form}: {lines:,} lines in {took}", flush=True)


if __name__ == "__main__":
    main()
