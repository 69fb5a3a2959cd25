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

from tests.demo.expected import BY_THE_SANDBOX, EXPECTED, Expected, astray, untried
from tests.demo.people import People
from tests.lab import Lab, Name
from tests.support.harness import whole_lines

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
BY_THE_RULESET = {"udp", "quic", "icmp"}  # reasons
NEVER_REACHED = ("203.0.113.9", "93.184.216.38", "93.184.216.39", "93.184.216.41", "10.0.0.7")


@dataclass(frozen=True)
class Tried:
    """One attempt of the task: when (seconds since 1970), what, and the client's exit status."""

    began: float
    ended: float
    status: int
    what: str


def main(scraped: str = METRICS) -> int:
    """Run it all; 0 when of every attempt became what is expected. `scraped` is where its metrics are served."""
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
        words = ["exeat", "run", "--rules", rules, "--task", "demo", "--metrics", scraped, "--", "sh", "task.sh"]
        people = People(lab)
        said = work.parent / "said"
        with said.open("w") as errors, people, lab.start(words, cwd=work, stderr=errors) as task:
            while not (work / "tried").exists() and task.poll() is None:
                time.sleep(0.05)
            metrics = lab.run(["curl", "--silent", f"http://{scraped}/metrics"]).stdout
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
        _metrics(metrics, scraped)
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
    told = [json.loads(line) for segment in segments for line in whole_lines(segment)]
    return [event for event in told if not event["kind"].startswith("journal.")]


def _settled(tried: list[Tried], events: list[dict]) -> list[dict | None]:
    """The event that settled each attempt; None: no gate has decided anything.

    What the ruleset refused is told when the kernel's log is read, so maybe later: those are told apart by their order.
    """
    late = [event for event in events if event.get("reason") in BY_THE_RULESET]
    found = []
    for attempt in tried:
        event = _deciding(attempt, [each for each in events if each.get("reason") not in BY_THE_RULESET])
        if event is None and late and _when(late[0]) >= attempt.began:
            event = late.pop(0)
        found.append(event)
    return found


def _deciding(attempt: Tried, events: list[dict]) -> dict | None:
    """The event that settled an attempt: the strictest of its requests, else of its connections, else its lookup."""
    within = [event for event in events if attempt.began <= _when(event) <= attempt.ended]
    for kind in ("request.decided", "connection.decided", "dns.decided"):
        found = [e for e in within if e["kind"] == kind]
        blocked = [e for e in found if e["outcome"] == "blocked"]
        if blocked or found:
            return (blocked or found)[-1]
    return None


def _when(event: dict) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _table(tried: list[Tried], events: list[dict]) -> int:
    """Print what was tried and decided; of how many attempts something else became than was expected."""
    rows = [("what the task tried", "client", "rules say", "people", "became", "reason", "by rule")]
    problems = [f"`{what}` was to be tried once" for what in untried([attempt.what for attempt in tried])]
    for attempt, event in zip(tried, _settled(tried, events), strict=True):
        says, found = judged(attempt, event, events)
        if wrong := astray(attempt.what, found):
            problems.append(f"`{attempt.what}` was to be: {wrong}")
        client = "ok" if found.works else f"failed ({attempt.status})"
        reason = found.reason if event else "refused by the sandbox itself"
        rows.append((attempt.what, client, says, found.people, found.outcome, reason, ", ".join(found.rules) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if not number:
            print("  ".join("-" * width for width in widths))
    print("(`flag` goes out and is looked at afterwards; `ask` is held until people have answered;")
    print(" a denied lookup is answered, with an address whose only use is to refuse with an explanation)")
    print(f"\nas expected: {len(tried) - len(problems)} of {len(EXPECTED)}", *problems, sep="\n")
    return len(problems)


def judged(attempt: Tried, event: dict | None, events: list[dict]) -> tuple[str, Expected]:
    """Return what the rules say of an attempt, and what became of it and why."""
    works = attempt.status == 0
    if event is None:
        return "-", BY_THE_SANDBOX._replace(works=works)
    says, people = tier(event, events)
    return says, Expected(works, event["outcome"], event["reason"], tuple(event.get("rules", ())), people)


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


def _metrics(text: str, scraped: str) -> None:
    print(f"\nthe metrics, as Prometheus scraped them from http://{scraped}/metrics (decisions and refused packets):\n")
    wanted = ("exeat_decisions_total{", "exeat_packets_refused_total{")
    print("\n".join(line for line in text.splitlines() if line.startswith(wanted) and not line.endswith(" 0.0")))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
