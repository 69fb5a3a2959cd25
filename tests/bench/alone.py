"""What is measured without load: the start of a task."""

import os
import sys
from pathlib import Path

from tests.bench import figures, gate, timed
from tests.bench.figures import Figure

_SPLICED = """
version: 1
name: bench
rules:
  - {id: passed-on, to: splice.bench.test, tls: splice, action: allow}
"""


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
        return {"start": timed.run(ways[name], seconds=30, env=environment, cwd=directory)}

    once("exeat run -- true")  # makes the CA and fills the cache, as a first run does
    found = figures.in_turns(list(ways), times, once, name=lambda way: way)["start"]
    return {"start": Figure("from the command to its end", "ms", 0, found)}
