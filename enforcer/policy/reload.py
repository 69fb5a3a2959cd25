"""Reloads rule files while their task runs, and sends the compiled policy to the worker, which can't read files."""

import contextlib
import os
import selectors
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from enforcer.policy import reread, rule_files
from enforcer.policy.rule_files import fingerprint
from enforcer.sandbox.system_paths import contains
from enforcer.system import inotify, processes
from enforcer.system.inotify import Inotify
from enforcer.system.notices import print_notice
from proxy.wire import strict_json
from proxy.worker.messages import RuleSetNews, SandboxNews

if TYPE_CHECKING:
    from enforcer.policy.run_request import RunRequest


_PATIENCE: Final = 60.0  # seconds for reading

type Cover = Callable[[Sequence[str]], None]  # has the sandbox cover paths anew


class PolicyReceiver(Protocol):
    """Receiver of a new policy: a worker, or the service for all sandboxes with the same rules."""

    def send(self, what: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message, with descriptors."""


class _Reader(NamedTuple):
    """Reader process: its pid, the pipe of its report, the file of its policy, and its deadline.

    `alone`: it reads only root's files.
    """

    pid: int
    says: int
    policy: int
    deadline: float
    alone: bool


class Reloader:
    """Reloader of one run's rule files, for the event loop of the supervisor. Close it."""

    def __init__(
        self, request: "RunRequest", gate: PolicyReceiver, cover: Cover, selector: selectors.BaseSelector
    ) -> None:
        self._request = request
        self._gate = gate
        self._cover = cover
        self._selector = selector
        self._asked: tuple[str, ...] = request.asked
        self._seen = request.seen
        self._watch: Watch | None = None
        self._reader: _Reader | None = None
        self._said = b""
        self._forced = False
        self._outboxed = False  # whether the rules in force have another `sandbox` than this run
        self._rejected = False  # whether the last that was read could not be used
        self._unwritten: list[str] = []  # what was told of a file that somebody is writing
        self._good = -1  # where the last policy is that all files made; below 0: the one that the task was started with
        self._sent = request.policy.revision  # of the policy that was handed on last
        self._covering: dict[str, rule_files.FileIdentity | None] = {}  # what was covered again last, by path
        self._deaf = 0.0  # until then nobody listens for changes; 0: somebody does

    def wait(self) -> float:
        """Return the seconds until `turn` is due."""
        due = self._due()
        return min(due, max(0.0, self._deaf - time.monotonic())) if self._deaf else due

    def _due(self) -> float:
        now = time.monotonic()
        if self._reader is not None:
            return max(0.0, self._reader.deadline - now)
        if self._watch is None:
            return 0.0
        return self._watch.wait()

    def in_force(self) -> tuple[tuple[str, ...], str]:
        """Return the files of the rules in force and their fingerprint; empty: they are new."""
        return self._asked, "" if self._rejected or self._reader is not None else self._seen

    def now(self) -> None:
        """Read the files again even if they have not changed (SIGHUP)."""
        self._forced = True
        self._begin_watching()
        if self._watch is not None:
            self._watch.stir()

    def turn(self) -> None:
        """Handle events that are due."""
        if self._deaf and time.monotonic() >= self._deaf:
            self._listen()
        if self._reader is not None:
            if time.monotonic() >= self._reader.deadline:
                self._fail(f"the rule files could not be read within {_PATIENCE:.0f} seconds")
            return
        if self._watch is None:
            self._begin_watching()
            return
        if self._watch.is_due():
            self._look()

    def close(self) -> None:
        """Stop watching and reading."""
        if self._reader is not None:
            self._end_reader()
        self._forget()
        if self._watch is not None:
            if not self._deaf and (descriptor := self._watch.fileno()) is not None:
                self._selector.unregister(descriptor)
            self._watch.close()
            self._watch = None

    def _begin_watching(self) -> None:
        if self._watch is not None:
            return
        self._watch = Watch(self._request.writable)
        self._listen()
        self._follow()
        self._look()  # at what happened before

    def _listen(self) -> None:
        self._deaf = 0.0
        if self._watch is not None and (descriptor := self._watch.fileno()) is not None:
            self._selector.register(descriptor, selectors.EVENT_READ, self._notice)

    def _notice(self) -> None:
        """Read the pending events, then pause for a moment, so that a flood can't keep this process busy."""
        if self._watch is not None and (descriptor := self._watch.fileno()) is not None:
            self._watch.read()
            self._selector.unregister(descriptor)
            self._deaf = time.monotonic() + DEAF

    def _follow(self) -> None:
        if self._watch is not None:
            self._watch.follow(self._asked, (str(rule_files.directory_of(self._request.system)),))

    def _look(self) -> None:
        self._look_after_covers()
        seen = fingerprint(self._asked, self._request.system)
        if seen == self._seen and not self._forced:
            return
        self._forced = False
        self._seen = seen
        self._follow()
        self._read([reread.describe_replaced(path) for path in self._uncovered()])

    def _look_after_covers(self) -> None:
        """Mask replaced rule files again, so that a task can't write what later runs read."""
        there = {path: rule_files.list_steps(path)[-1].what for path in self._uncovered()}
        before, self._covering = self._covering, there
        # Compared as a whole: a file that took the place of another may have been given its inode.
        if any(what is not None and what != before.get(path) for path, what in there.items()):
            self._cover(tuple(there))  # each is another one, or lies below such a one

    def _uncovered(self) -> tuple[str, ...]:
        return rule_files.find_unmasked(self._asked, self._request.writable, self._request.covers)

    def _read(self, problems: Sequence[str]) -> None:
        """Start the reader. A failure is retried: a task of the same user can use up processes (fork(2), EAGAIN).

        With `problems`, only root's files are read.
        """
        parent = os.getpid()
        made: list[int] = []
        try:
            made += os.pipe()
            made.append(os.memfd_create("policy", os.MFD_CLOEXEC))
            pid = os.fork()
        except OSError as error:
            for descriptor in made:
                os.close(descriptor)
            self._seen = ""  # what they hold was not read: the next look finds them changed
            self._reject([f"no process could be started to read the rule files ({error.strerror}); tried again soon"])
            return
        says, its, policy = made
        if pid == 0:
            before = reread.RereadRequest(self._request, self._asked, self._good, tuple(problems))
            reread.run_reader(parent, its, policy, before)
        os.close(its)
        os.set_blocking(says, False)
        self._said = b""
        self._reader = _Reader(pid, says, policy, time.monotonic() + _PATIENCE, alone=bool(problems))
        self._selector.register(says, selectors.EVENT_READ, self._hear)

    def _hear(self) -> None:
        assert self._reader is not None
        data = os.read(self._reader.says, 1 << 16)
        if data:
            self._said += data
            return
        try:
            said = strict_json.loads(self._said)
        except ValueError:
            self._fail("the rule files could not be read: the process that reads them ended")
            return
        told = "revision" in said and self._hand_on(said)
        self._end_reader()
        if "asked" in said:
            self._asked = tuple(said["asked"])
            self._seen = said["seen"]
            self._follow()
        before, self._unwritten = self._unwritten, said["problems"] if "unwritten" in said else []
        if self._unwritten and self._unwritten == before and not told:
            pass  # it has been said
        elif "problems" in said:
            self._reject(said["problems"], to_gate=not told)
        elif self._rejected:
            self._rejected = False
            print_notice("the rules are right again, and were loaded")
        if fingerprint(self._asked, self._request.system) != self._seen and self._watch is not None:
            self._watch.stir()  # saved again meanwhile

    def _hand_on(self, said: Mapping[str, Any]) -> bool:
        """Send the new policy, or the one before under root's new files; return whether one was sent."""
        assert self._reader is not None
        whole = "problems" not in said
        if not whole and said["revision"] == self._sent:
            return False  # what root's files say is in force already
        news = RuleSetNews(rules=said["revision"])
        if said.get("asks"):
            news["asks"] = True  # the run begins to use the approvals server
        self._gate.send(news, [self._reader.policy])
        self._sent = said["revision"]
        if whole:
            self._forget()
            self._good = os.dup(self._reader.policy)
            before, self._outboxed = self._outboxed, bool(said["outboxed"])
            if self._outboxed and not before:
                print_notice("the rules' `sandbox` changed; it applies to tasks that start from now on")
        return True

    def _forget(self) -> None:
        if self._good >= 0:
            os.close(self._good)
            self._good = -1

    def _fail(self, problem: str) -> None:
        """Read only root's files after any failure with the others."""
        alone = self._reader is not None and self._reader.alone
        self._end_reader()
        if alone:
            self._reject([problem])
        else:
            self._read([problem])

    def _end_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        self._selector.unregister(reader.says)
        processes.kill_and_wait(reader.pid)
        os.close(reader.says)
        os.close(reader.policy)

    def _reject(self, problems: Sequence[str], *, to_gate: bool = True) -> None:
        """Report problems; `to_gate`: also to the gate, if no policy carries them."""
        told = reread.limit_problems(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        self._rejected = True
        stays = "those in force stay" if to_gate else "but what root's files say now is in force besides"
        print_notice(f"the rules were not loaded again, {stays}: {told[0]}{more}")
        if to_gate:
            self._gate.send(SandboxNews(rules_rejected=told))


QUIET = 0.15  # seconds without a change before files count as saved
LONGEST_WAIT = 2.0  # seconds of changes without end, after which they are looked at all the same
LOOK_EVERY = 5.0  # seconds
DEAF = 0.05  # seconds between two times that events are read: a task can cause some without end, as by chmod(2)


class Watch:
    """Watch on the files of one policy. Close it."""

    def __init__(self, writable: Collection[str]) -> None:
        """Make an empty watch. `writable`: the trees that a task may write."""
        self._inotify: Inotify | None = None
        with contextlib.suppress(OSError):  # a user may have so many, and no more
            self._inotify = Inotify()
        self._writable = writable
        self._names: dict[str, set[str]] = {}  # that count, by directory
        self._since = self._last = 0.0  # when changes that weren't looked at began, and the last one was
        self._looked = time.monotonic()

    def fileno(self) -> int | None:
        """Return the descriptor that becomes readable after a change; None: the files are polled every few seconds."""
        return None if self._inotify is None else self._inotify.fd

    def follow(self, paths: Iterable[str], directories: Iterable[str] = ()) -> None:
        """Replace the watched files, and directories with all their names."""
        if self._inotify is None:
            return
        names: dict[str, set[str]] = {directory: set() for directory in directories}
        files: set[str] = set()
        for path in paths:
            for step in rule_files.list_steps(path):
                if step.directory not in directories:
                    names.setdefault(step.directory, set()).add(step.name)
                if step.what is not None and not step.what.is_directory and not step.what.is_link:
                    files.add(step.path)
        self._inotify.clear()
        moved = inotify.IN_MOVE | inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB
        gone = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF
        itself = inotify.IN_MODIFY | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB | gone
        for place in sorted({*names, *files}):
            if place in names and any(contains(tree, place) for tree in self._writable):
                continue
            with contextlib.suppress(OSError):
                self._inotify.add(place, itself if place in files else moved | gone)
        self._names = names

    def read(self) -> None:
        """Read a bounded number of events: signals and the end of the task must not wait."""
        if self._inotify is None:
            return
        events, more = self._inotify.read()
        for event in events:
            if event.mask & inotify.IN_IGNORED:
                continue
            names = self._names.get(event.path)
            if not event.name or not names or event.name in names:
                self.stir()
        if more:
            self.stir()  # whatever is in the rest

    def stir(self) -> None:
        """Record that something changed now."""
        self._last = time.monotonic()
        self._since = self._since or self._last

    def wait(self) -> float:
        """Return the seconds until `is_due`."""
        now = time.monotonic()
        if self._since:
            return max(0.0, min(self._last + QUIET, self._since + LONGEST_WAIT) - now)
        return max(0.0, self._looked + LOOK_EVERY - now)

    def is_due(self) -> bool:
        """Whether the files are due for a check; schedules the next one."""
        if self.wait() > 0:
            return False
        self._since = 0.0
        self._looked = time.monotonic()
        return True

    def close(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            self._inotify.close()
