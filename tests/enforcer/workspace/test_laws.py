"""Whatever a host and a task do to the same files, in whatever order: nothing that either wrote is lost."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.enforcer.workspace.changes_harness import World

PATHS = st.sampled_from(["a", "b", "d/a", "d/e/b"])
LINES = [f"{number}\n" for number in range(9)]
WRITE, DELETE = st.tuples(st.just("writes"), PATHS, st.integers(0, 8)), st.tuples(st.just("deletes"), PATHS)
ACCEPT = st.tuples(st.just("accept"), PATHS | st.none())


def by(side, *operations):
    return st.one_of([operation.map(lambda said: (f"{side}_{said[0]}", *said[1:])) for operation in operations])


class TwoSides:
    """A workspace that the host goes on with, the task's changes to it, and acceptance of some of them, repeatedly.

    What each side means is kept as a model: the texts that each wrote last, by path.
    """

    def __init__(self, there):
        self.patch = pytest.MonkeyPatch()
        self.base = Path(tempfile.mkdtemp(prefix="exeat-test-"))
        self.world = World(self.base, self.patch)
        for path in sorted(there):
            self.world.write(path, "".join(LINES))
        self.start = dict.fromkeys(there, "".join(LINES))
        self.host, self.task = dict(self.start), dict(self.start)
        self.count = 0
        self.world.begin()

    def close(self):
        self.patch.undo()
        shutil.rmtree(self.base)

    def text(self, old, line):
        """An edit of one line, as nobody else would make it; or a text of its own."""
        self.count += 1
        if old is None:
            return f"made {self.count}\n"
        lines = old.splitlines(keepends=True)
        lines[line % len(lines)] = f"written {self.count}\n"
        return "".join(lines)

    def task_writes(self, path, line):
        self.task[path] = self.text(self.task.get(path), line)
        self.world.task_writes(path, self.task[path])

    def task_deletes(self, path):
        if path in self.task:
            del self.task[path]
            if path in self.start:
                self.world.task_deletes(path)
            else:
                (self.world.upper / path).unlink()

    def host_writes(self, path, line):
        self.host[path] = self.text(self.host.get(path), line)
        self.world.write(path, self.host[path])

    def host_deletes(self, path):
        if self.host.pop(path, None) is not None:
            (self.world.work / path).unlink()

    def accept(self, path):
        pending = self.world.changes()
        if path is not None and path not in pending:
            return
        before = dict(self.host)
        said = self.world.accept(*([] if path is None else [path]))
        for name, how in said.items():
            if (self.world.work / name).is_dir() or name in ("d", "d/e"):
                continue
            now = self.read(name)
            ours, theirs, base = before.get(name), self.task.get(name), self.start.get(name)
            if how.startswith("left"):
                assert now == ours, (name, how)
                assert name in self.world.changes()
            elif how == "merged":
                for side in (ours, theirs):  # every line that one of them wrote
                    assert set(side.splitlines()) - set(base.splitlines()) <= set(now.splitlines())
            else:
                assert now == theirs, (name, how)
                assert ours in (base, theirs), (name, how)  # nothing of the host's was in the way
            if now is None:
                self.host.pop(name, None)
            else:
                self.host[name] = now

    def read(self, name):
        path = self.world.work / name
        return path.read_text() if os.path.lexists(path) else None

    def check(self):
        """The host has what it wrote, or accepted."""
        found = {name: content for name, content in self.world.files().items() if content is not None}
        assert found == self.host


@settings(max_examples=25, deadline=None)
@given(
    there=st.sets(PATHS),
    during=st.lists(by("task", WRITE, WRITE, DELETE) | by("host", WRITE, DELETE), min_size=3, max_size=8),
    after=st.lists(by("host", WRITE, DELETE) | ACCEPT, min_size=1, max_size=6),
)
def test_merge_loses_no_side(there, during, after):
    sides = TwoSides(there)
    try:
        for operation, *words in during:
            getattr(sides, operation)(*words)
        sides.world.changes()  # the task has ended
        for operation, *words in (*after, ("accept", None), ("accept", None)):
            getattr(sides, operation)(*words)
            sides.check()
    finally:
        sides.close()
