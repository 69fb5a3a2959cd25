"""What is measured without load: a decision among very many rules, and the start of a task."""

import os
import subprocess
import sys
import time
import timeit
from pathlib import Path

from rules.attempt import Attempt, Protocol, Request
from rules.names import HostName
from rules.paths import PathPattern
from rules.patterns import NamePattern
from rules.policy import Policy
from rules.ports import Ports
from rules.rule import Http, Rule
from rules.verdicts import TlsMode, Verdict
from tests.bench import figures, gate
from tests.bench.figures import Figure, Values

RULES = 100_000
_TIMES = 20_000
_SPLICED = """
version: 1
name: bench
rules:
  - {id: passed-on, to: splice.bench.test, tls: splice, action: allow}
"""


def many_rules(count: int) -> Policy:
    """A policy of names, wildcards, requests and denies, as a large company's might be."""
    tls = (Ports(443, 443, Protocol.TLS),)
    reading = Http(frozenset({"GET", "HEAD"}), (PathPattern.parse("/repos/acme/**"), PathPattern.parse("/user")))
    found = []
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


_ATTEMPTS = {
    "a name": ("host1.company1.example", None),
    "a name in a wildcard": ("a.b.zone50000.example", None),
    "a request": ("host99997.company297.example", Request("GET", "/repos/acme/web/pulls?state=open")),
    "a request, refused": ("host99997.company297.example", Request("POST", "/repos/acme/web/pulls")),
    "a denied name": ("host99999.company299.example", None),
    "no rule": ("www.nowhere.example", None),
    "no rule, some near": ("www.company1.example", None),
}


def decide(rounds: int) -> dict[str, Figure]:
    """How long one decision takes among 100,000 rules, by the kind of attempt; and among ten."""
    big, small = many_rules(RULES), many_rules(10)
    attempts = {
        kind: Attempt(Protocol.TLS, HostName.parse(name), 443, request) for kind, (name, request) in _ATTEMPTS.items()
    }
    found: dict[str, Values] = {}
    for policy, kinds, suffix in ((big, list(attempts), ""), (small, ["a name"], " (10 rules)")):
        for kind in kinds:
            each = timeit.repeat(lambda p=policy, a=attempts[kind]: p.decide(a), number=_TIMES, repeat=rounds)
            found[kind + suffix] = Values(tuple(seconds / _TIMES * 1e6 for seconds in each))
    return {"decide": Figure(f"decide() among {RULES:,} rules", "us", 2, found)}


def start(work: Path, times: int) -> dict[str, Figure]:
    """How long `exeat run -- true` takes, all of it: under the bench's rules, and under rules that inspect nothing."""
    directory = work / "empty"
    directory.mkdir()
    spliced = work / "spliced.yaml"
    spliced.write_text(_SPLICED)
    environment = {**os.environ, "XDG_STATE_HOME": str(work / "state")}

    def argv(rules: Path) -> list[str]:
        return gate.exeat("run", "--rules", rules, "--quiet", "--journal", work / "journal", "--", "true")

    ways = {
        "exeat run -- true": argv(gate.rules(work)),
        "exeat run -- true, nothing inspected": argv(spliced),
        "python -c pass": [sys.executable, "-c", "pass"],
    }

    def once(name: str) -> dict[str, float]:
        began = time.perf_counter()
        done = subprocess.run(ways[name], env=environment, cwd=directory, capture_output=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.decode(errors='replace')[-500:]}")
        return {"start": (time.perf_counter() - began) * 1e3}

    once("exeat run -- true")  # makes the CA and fills the cache, as a first run does
    found = figures.in_turns(list(ways), times, once, name=lambda way: way)["start"]
    return {"start": Figure("from the command to its end", "ms", 0, found)}
