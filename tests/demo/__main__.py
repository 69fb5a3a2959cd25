"""Run the demo's task behind the gate and print what was tried, what was decided and why, and where that is told."""

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.demo.people import People
from tests.lab import Lab, Name

HERE = Path(__file__).parent
METRICS = "127.0.0.1:9464"
NAMES = {
    "api.demo.example": Name.at("93.184.216.34"),
    "git.demo.example": Name.at("93.184.216.35"),
    "*.packages.demo.example": Name.at("93.184.216.36"),
    "telemetry.demo.example": Name.at("93.184.216.37"),
    "*.paste.demo.example": Name.at("93.184.216.38"),
    "unknown.demo.example": Name.at("93.184.216.39"),
    "db.demo.example": Name.at("93.184.216.42"),
    "cdn.demo.example": Name.at("93.184.216.40"),
    "hidden.demo.example": Name.at("93.184.216.40"),
    "internal.demo.example": Name.at("10.0.0.7"),
    "*.evil.demo.example": Name.at("93.184.216.41"),
}
NEVER_REACHED = ("203.0.113.9", "93.184.216.38", "93.184.216.39", "93.184.216.41", "10.0.0.7")


@dataclass(frozen=True)
class Tried:
    """One attempt of the task: when (seconds since 1970), what, and the client's exit status."""

    began: float
    ended: float
    status: int
    what: str


def main() -> int:
    """Run it all; 0 when every attempt was decided as the demo says it is."""
    if os.geteuid() != 0:
        print("the demo makes network namespaces that reach each other: run `make demo` as root", file=sys.stderr)
        return 1
    print("building a local internet (its own network namespace, DNS and certificates) ...", flush=True)
    with Lab(NAMES) as lab:
        lab.make_repository("acme", {"README.md": "the repository that may be cloned\n"})
        lab.make_repository("other", {"README.md": "another one\n"})
        work = lab.workspace()
        rules = lab.home() / "rules.yaml"
        for source, target in ((HERE / "rules.yaml", rules), (HERE / "task.sh", work / "task.sh")):
            shutil.copy(source, target)
        print("running tests/demo/task.sh in a sandbox: `exeat run --rules rules.yaml -- sh task.sh` ...\n", flush=True)
        words = ["exeat", "run", "--rules", rules, "--task", "demo", "--metrics", METRICS, "--", "sh", "task.sh"]
        people = People(lab)
        said = work.parent / "said"
        with said.open("w") as errors, people, lab.start(words, cwd=work, stderr=errors) as task:
            while not (work / "tried").exists() and task.poll() is None:
                time.sleep(0.05)
            metrics = lab.run(["curl", "--silent", f"http://{METRICS}/metrics"]).stdout
            (work / "seen").touch()
            task.wait(30)
        journal = Path(tempfile.mkdtemp(prefix="exeat-demo-")) / "journal"  # the lab's own is gone after it
        shutil.copytree(lab.home() / ".local/state/exeat/journal", journal)
        print(f"{kept_hint(said.read_text(), journal)}\n")
        events = _events(journal)
        tried = _tried(work)
        problems = _table(tried, events)
        print("\nwhat was held, and how it was answered meanwhile:\n")
        print("\n".join(people.said))
        _journal(lab)
        _metrics(metrics)
        packets = lab.origin.packets_to(*NEVER_REACHED)
        print(f"\npackets that reached {len(NEVER_REACHED)} addresses that nothing may reach: {packets}")
        lookups = [name for name, *_ in lab.origin.queries() if "evil" in name or "paste" in name]
        print(f"lookups of denied names that left: {len(lookups)}")
        return 1 if problems or packets or lookups or not tried else 0


def _tried(work: Path) -> list[Tried]:
    lines = (work / "attempts.tsv").read_text().splitlines() if (work / "attempts.tsv").exists() else []
    fields = (line.split("\t") for line in lines)
    return [Tried(float(began), float(ended), int(status), what) for began, ended, status, what in fields]


def kept_hint(said: str, journal: Path) -> str:
    """Return what `exeat run` said in the end, with its advice made good for where the journal is kept."""
    return said.replace(
        "`exeat log --task", f"`{Path(sys.executable).parent}/exeat log --journal {journal} --task"
    ).rstrip()


def _events(journal: Path) -> list[dict]:
    segments = sorted(journal.glob("*/*.jsonl"))
    told = [json.loads(line) for segment in segments for line in segment.read_text().splitlines()]
    return [event for event in told if not event["kind"].startswith("journal.")]


def _deciding(attempt: Tried, events: list[dict]) -> dict | None:
    """The event that settled an attempt: the strictest of its requests, else of its connections, else its lookup."""
    within = [e for e in events if attempt.began <= datetime.fromisoformat(e["time"]).timestamp() <= attempt.ended]
    for kind in ("request.decided", "connection.decided", "dns.decided"):
        found = [e for e in within if e["kind"] == kind]
        blocked = [e for e in found if e["outcome"] == "blocked"]
        if blocked or found:
            return (blocked or found)[-1]
    return None


def _table(tried: list[Tried], events: list[dict]) -> int:
    """Print what was tried and decided; how many attempts say something else than their client saw."""
    rows = [("what the task tried", "client", "rules say", "people", "became", "reason", "by rule")]
    problems = 0
    for attempt in tried:
        event = _deciding(attempt, events)
        client = "ok" if attempt.status == 0 else f"failed ({attempt.status})"
        if event is None:
            rows.append((attempt.what, client, "-", "-", "-", "refused by the sandbox itself", "-"))
            problems += attempt.status == 0
            continue
        rules = ", ".join(event.get("rules", ())) or "-"
        rows.append((attempt.what, client, *tier(event, events), event["outcome"], event["reason"], rules))
        # A lookup of a denied name is answered, with an address whose only use is to be refused with an explanation.
        answered = event["kind"] == "dns.decided"
        problems += not answered and (event["outcome"] == "passed") != (attempt.status == 0)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if not number:
            print("  ".join("-" * width for width in widths))
    print("(`flag` goes out and is looked at afterwards; `ask` is held until people have answered;")
    print(" a denied lookup is answered, with an address whose only use is to refuse with an explanation)")
    return problems


def tier(event: dict, events: list[dict]) -> tuple[str, str]:
    """Return what the rules said before anybody was asked, and who answered what."""
    asked = event.get("approval", {}).get("id")
    if asked is None:
        return event["verdict"], "-"
    said = [e["approval"] for e in events if e["kind"] == "approval.answered" and e["approval"]["id"] == asked]
    if not said:
        return "ask", "-"
    return "ask", f"{', '.join(said[-1]['by'])}: {said[-1]['answer']}"  # the last one names all who had to


def _journal(lab: Lab) -> None:
    print("\nthe journal, as `exeat log --verdict blocked` shows it (last lines):\n")
    print("\n".join(lab.run(["exeat", "log", "--verdict", "blocked"]).stdout.splitlines()[-8:]))


def _metrics(text: str) -> None:
    print(f"\nthe metrics, as Prometheus scraped them from http://{METRICS}/metrics (decisions and refused packets):\n")
    wanted = ("exeat_decisions_total{", "exeat_packets_refused_total{")
    print("\n".join(line for line in text.splitlines() if line.startswith(wanted) and not line.endswith(" 0.0")))


if __name__ == "__main__":
    sys.exit(main())
