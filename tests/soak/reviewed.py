"""Tasks of a soak that write a workspace which is reviewed: what they say they did is there, whole, and merged whole or not at all."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

SIZE = 20_000  # lines: more than one write of anybody's
# Changes a file, deletes one and makes one in a directory of its own, and says so once all of that is done.
TASK = """
import os, sys
number = sys.argv[2]
with open("changed-" + number, "w") as file:
    file.write(f"after {number}\\n" * int(sys.argv[3]))
os.unlink("gone-" + number)
os.mkdir("made-" + number)
with open(f"made-{number}/in", "w") as file:
    file.write(f"new {number}\\n" * int(sys.argv[3]))
print("wrote", flush=True)
"""


class Reviewed:
    """One workspace, in which each task has files of its own, and what came of it."""

    def __init__(self, place: Path, exeat: str, environment: dict[str, str], chance) -> None:
        self.place = place
        self.exeat = exeat
        self.environment = environment
        self.chance = chance
        self.wrong = []
        self.merged = self.stopped = 0
        self._waiting: dict[int, bool] = {}  # whether it said that it had done its work
        self._expected: dict[str, str] = {}
        place.mkdir()

    def prepare(self, number: int) -> None:
        """Put there what a task is about to change."""
        for name, text in ((f"changed-{number}", f"before {number}\n" * SIZE), (f"gone-{number}", "here")):
            (self.place / name).write_text(text)
            self._expected[name] = text

    def ended(self, number: int, said: bytes) -> None:
        """Take note of a task that is over, killed or not."""
        self._waiting[number] = b"wrote" in said

    def settle(self) -> None:
        """Once the runs are over: merge what is whole, stopping some merges in their midst, and give up the rest."""
        if not self._waiting:
            return
        self._compare("before anything was merged")
        listed = {row["name"]: row["task"] for row in json.loads(self._ask("--format", "json"))}
        for number, wrote in self._waiting.items():
            task = listed.pop(f"r{number}", None)
            if wrote and task is None:
                self.wrong.append(f"what task r{number} changed is lost")
            elif task is not None and not wrote:
                self._ask("discard", task)
            elif task is not None:
                self._merge(number, task)
        if listed:
            self.wrong.append(f"changes of nobody's: {sorted(listed)}")
        self._waiting.clear()
        self._compare("after merging")

    def _merge(self, number: int, task: str) -> None:
        after = {f"changed-{number}": f"after {number}\n" * SIZE, f"made-{number}/in": f"new {number}\n" * SIZE}
        stopped = self.chance.random() < 0.5
        if stopped:
            merging = subprocess.Popen([self.exeat, "changes", "accept", task], env=self.environment,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
            self._wait_for_it(task)
            time.sleep(self.chance.uniform(0, 0.02))
            with contextlib.suppress(ProcessLookupError):
                merging.send_signal(signal.SIGKILL)
            self.stopped += merging.wait() == -signal.SIGKILL
            for name, text in self._there(number).items():
                # Set aside for a moment under another name, or whole.
                if text not in {self._expected.get(name), after.get(name), None}:
                    self.wrong.append(f"{name} is half merged after a merge of r{number} was stopped")
        self._ask("accept", task, also=(2,) if stopped else ())  # 2: it was finished before it was stopped
        del self._expected[f"gone-{number}"]
        self._expected |= after
        self.merged += 1

    def _wait_for_it(self, task: str) -> None:
        """Until a merge has begun to write down what it is about to do, or has not for a while."""
        intents = next(Path(self.environment["XDG_STATE_HOME"]).glob(f"exeat/changes/{task}")) / "intents.jsonl"
        deadline = time.monotonic() + 2
        while not intents.exists() and time.monotonic() < deadline and intents.parent.exists():
            time.sleep(0.001)

    def _there(self, number: int) -> dict[str, str]:
        return {name: text for name, text in self._files().items() if name.endswith((f"-{number}", f"-{number}/in"))}

    def _files(self) -> dict[str, str]:
        return {os.path.relpath(path, self.place): path.read_text() for path in self.place.rglob("*") if path.is_file()}

    def _compare(self, when: str) -> None:
        found = self._files()
        if found != self._expected:
            differ = sorted(
                name for name in found.keys() | self._expected if found.get(name) != self._expected.get(name)
            )
            self.wrong.append(f"the workspace is not what it should be {when}: {differ}")
            self._expected = found

    def _ask(self, *words: str, also=()) -> str:
        done = subprocess.run([self.exeat, "changes", *words], env=self.environment, capture_output=True, text=True,
                              check=False)  # fmt: skip
        if done.returncode not in {0, *also}:
            self.wrong.append(f"`exeat changes {' '.join(words)}`: {done.returncode} {done.stderr[-500:]}")
        return done.stdout or "[]"
