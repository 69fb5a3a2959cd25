"""What rules cost at scale: a decision, loading them, and how long the gate hangs while others come into force."""

import contextlib
import json
import os
import subprocess
import sys
import timeit
from pathlib import Path

from rules.attempt import Attempt, Protocol, Request
from rules.feeds import Feed
from rules.matching.policy import Policy
from rules.ports import Ports
from rules.rule import Http, Rule
from rules.values.names import HostName
from rules.values.paths import PathPattern
from rules.values.patterns import NamePattern
from rules.verdicts import TlsMode, Verdict
from tests.bench import figures, gate, timed
from tests.bench.figures import Figure, Values

RULES = 100_000
LISTED = 1_000_000
CHECKED = 5_000
_TIMES = 20_000

# Run by a process of its own, so that what is resident is what was loaded. The garbage collector is off, as in `exeat`.
_LOADING = """
import gc, json, sys, time
from pathlib import Path
from rules.loading.load import read
gc.disable()
def resident(which):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(which)) / 1000
before, began = resident("VmRSS"), time.perf_counter()
policy = read([Path(sys.argv[1])]).policy
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "kept": resident("VmRSS") - before, "most": resident("VmHWM") - before}))
"""

# Takes a policy in as the worker does, beside a loop that wakes every millisecond.
_RELOADING = """
import gc, json, sys, tempfile, threading, time
from pathlib import Path
from proxy.worker import policy_transfer as handover
from rules.loading.load import read
gc.disable()
with tempfile.TemporaryFile() as file:
    handover.send(read([Path(sys.argv[1])]).policy, file)
    file.seek(0)
    def reload():
        taken = [handover.receive(file)]
        handover.free(taken)
    def worst(thread, end):
        found, last = 0.0, time.perf_counter()
        while last < end or thread.is_alive():
            time.sleep(0.001)
            now = time.perf_counter()
            found, last = max(found, now - last - 0.001), now
        return found * 1e3
    thread = threading.Thread(target=reload)
    idle = worst(thread, time.perf_counter() + 2)
    thread.start()
    print(json.dumps({"idle": idle, "reloading": worst(thread, 0)}))
"""


def many_rules(count: int, *more: Rule) -> Policy:
    """A policy of names, wildcards, requests and denies, as a large company's might be."""
    tls = (Ports(443, 443, Protocol.TLS),)
    reading = Http(frozenset({"GET", "HEAD"}), (PathPattern.parse("/repos/acme/**"), PathPattern.parse("/user")))
    found = list(more)
    for number in range(count):
        kind = number % 5
        name = f"host{number}.company{number % 997}.example" if kind else f"*.zone{number}.example"
        found.append(
            Rule(
                f"bench:rule-{number}",
                Verdict.DENY if kind == 4 else Verdict.ALLOW,
                (NamePattern.parse(name),),
                ports=None if kind == 4 else tls,
                http=reading if kind == 2 else None,
                tls=TlsMode.SPLICE if kind == 1 else TlsMode.INSPECT,
            )
        )
    return Policy(found)


def listing(count: int) -> bytes:
    """A hosts file."""
    return b"\n".join(b"0.0.0.0 ads%d.tracker%d.example" % (number, number % 9973) for number in range(count)) + b"\n"


_ATTEMPTS = {
    "a name": ("host1.company1.example", None),
    "a name in a wildcard": ("a.b.zone50000.example", None),
    "a request": ("host99997.company297.example", Request("GET", "/repos/acme/web/pulls?state=open")),
    "a request, refused": ("host99997.company297.example", Request("POST", "/repos/acme/web/pulls")),
    "a denied name": ("host99999.company299.example", None),
    "a name in the list": ("www.ads777777.tracker9860.example", None),
    "no rule": ("www.nowhere.example", None),
    "no rule, some near": ("www.company1.example", None),
}
# More names than a policy keeps what it found for, one after the other: each is looked up anew.
_IN_TURN = {
    "2,000 names in turn": [f"host{n}.company{n % 997}.example" for n in range(1, RULES, 50)],
    "2,000 names in the list in turn": [f"www.ads{n}.tracker{n % 9973}.example" for n in range(1, LISTED, 500)],
    "2,000 names under no rule in turn": [f"www.nowhere{n}.example" for n in range(2000)],
}


def decide(rounds: int) -> dict[str, Figure]:
    """How long one decision takes among 100,000 rules and a list of 1,000,000 names, by the kind of attempt."""
    ads = Rule("bench:ads", Verdict.DENY, feeds=(Feed.read(listing(LISTED), "ads.txt"),))
    big, small = many_rules(RULES, ads), many_rules(10)
    asked = {kind: [_attempt(name, request)] for kind, (name, request) in _ATTEMPTS.items()}
    asked.update((kind, [_attempt(name) for name in names]) for kind, names in _IN_TURN.items())
    host = _ATTEMPTS["a request, refused"][0]
    asked["2,000 requests in turn, refused"] = [_attempt(host, Request("POST", f"/repos/{n}")) for n in range(2000)]
    found = {kind: _timed(big, attempts, rounds) for kind, attempts in asked.items()}
    found["a name (10 rules)"] = _timed(small, asked["a name"], rounds)
    return {"decide": Figure(f"decide() among {RULES:,} rules and {LISTED:,} listed names", "us", 2, found)}


def _attempt(name: str, request: Request | None = None) -> Attempt:
    return Attempt(Protocol.TLS, HostName.parse(name), 443, request)


def _timed(policy: Policy, attempts: list[Attempt], rounds: int) -> Values:
    def all_of_them() -> None:
        for attempt in attempts:
            policy.decide(attempt)

    all_of_them()  # what is worked out once
    times = _TIMES // len(attempts)
    each = timeit.repeat(all_of_them, number=times, repeat=rounds)
    return Values(tuple(seconds / (times * len(attempts)) * 1e6 for seconds in each))


def loading(work: Path, rounds: int) -> dict[str, Figure]:
    """How long it takes to check and to load rules, and how much memory they take."""
    checked, many, listed = _written(work)
    ways = {
        f"exeat check, {CHECKED:,} rules": lambda: _check(checked),
        f"loading {RULES:,} rules": lambda: _asked(_LOADING, many),
        f"loading a list of {LISTED:,} names": lambda: _asked(_LOADING, listed),
    }
    found = figures.in_turns(list(ways), rounds, lambda way: ways[way](), name=lambda way: way)
    return {
        "seconds": Figure("from beginning to end", "s", 2, found["seconds"]),
        "kept": Figure("resident afterwards", "MB", 0, found["kept"]),
        "most": Figure("resident at most", "MB", 0, found["most"]),
    }


def reloading(work: Path, rounds: int) -> dict[str, Figure]:
    """How late a loop wakes that wants to go on every millisecond, while a policy is taken in and another let go."""
    both = _written(work)[0].with_name("both.yaml")
    both.write_text("version: 1\ninclude: [{file: checked.yaml}, {file: listed.yaml}]\n")
    alone = [_asked(_RELOADING, both) for _ in range(rounds)]
    with contextlib.ExitStack() as closing:
        for _ in os.sched_getaffinity(0):
            busy = closing.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            closing.callback(busy.kill)
        beside = [_asked(_RELOADING, both) for _ in range(rounds)]
    found = {
        f"{way}{more}": Values(tuple(values[way] for values in each))
        for more, each in (("", alone), (", busy", beside))
        for way in ("idle", "reloading")
    }
    says = f"the longest wait, {CHECKED:,} rules and {LISTED:,} listed names"
    return {"wait": Figure(says, "ms", 1, found)}


def _written(work: Path) -> tuple[Path, Path, Path]:
    """Write the rule files: a usual one, a large one, and one with a list."""
    directory = work / "rules-at-scale"
    checked, many, listed = (directory / name for name in ("checked.yaml", "many.yaml", "listed.yaml"))
    if not directory.exists():
        directory.mkdir()
        checked.write_text("version: 1\nrules:\n" + "".join(map(_line, range(CHECKED))))
        many.write_text("version: 1\nrules:\n" + "".join(map(_line, range(RULES))))
        listed.write_text("version: 1\nrules:\n  - {id: ads, to: {list: ads.txt}, action: deny, why: not ours}\n")
        (directory / "ads.txt").write_bytes(listing(LISTED))
    return checked, many, listed


def _line(number: int) -> str:
    kind = number % 5
    name = f"host{number}.company{number % 997}.example" if kind else f'"*.zone{number}.example"'
    more = {1: "    tls: splice\n", 2: '    http: {methods: [GET, HEAD], paths: ["/repos/acme/**", /user]}\n'}.get(
        kind, ""
    )
    action = "deny" if kind == 4 else "allow"
    return f"  - id: rule-{number}\n    to: {name}\n{more}    action: {action}\n    why: ticket {number}\n"


def _check(file: Path) -> dict[str, float]:
    return {"seconds": timed.run(gate.exeat("check", file), seconds=60, stdout=subprocess.DEVNULL) / 1e3}


def _asked(script: str, file: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", script, file], capture_output=True, timeout=120, check=True)
    return json.loads(done.stdout)
