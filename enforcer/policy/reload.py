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

type Mask = Callable[[Sequence[str]], None]  # has the sandbox mask paths again


class PolicyReceiver(Protocol):
    """Receiver of a new policy: a worker, or the service for all sandboxes with the same rules."""

    def send(self, fields: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message, with descriptors."""


class _Reader(NamedTuple):
    """Reader process: its pid, the pipe of its report, the file of its policy, and its deadline.

    `only_root`: it reads only root's files.
    """

    pid: int
    pipe: int
    policy: int
    deadline: float
    only_root: bool


class Reloader:
    """Reloader of one run's rule files, for the event loop of the supervisor. Close it."""

    def __init__(
        self, request: "RunRequest", gate: PolicyReceiver, mask: Mask, selector: selectors.BaseSelector
    ) -> None:
        self._request = request
        self._gate = gate
        self._mask = mask
        self._selector = selector
        self._searched_paths: tuple[str, ...] = request.searched_paths
        self._fingerprint = request.fingerprint
        self._watch: Watch | None = None
        self._reader: _Reader | None = None
        self._report = b""
        self._forced = False
        self._settings_changed = False  # whether the rules in force have another `sandbox` than this run
        self._rejected = False  # the files read last were invalid
        self._being_written: list[str] = []  # problems of files that are still being written
        self._last_policy = -1  # file of the last valid policy; -1: the policy of the start
        self._sent_revision = request.policy.revision  # revision of the policy sent last
        self._replaced_masks: dict[str, rule_files.FileIdentity | None] = {}  # files masked again last
        self._paused_until = 0.0  # until then no events are read (time.monotonic()); 0: they are read

    def wait(self) -> float:
        """Return the seconds until `turn` is due."""
        due = self._due()
        return min(due, max(0.0, self._paused_until - time.monotonic())) if self._paused_until else due

    def _due(self) -> float:
        now = time.monotonic()
        if self._reader is not None:
            return max(0.0, self._reader.deadline - now)
        if self._watch is None:
            return 0.0
        return self._watch.wait()

    def in_force(self) -> tuple[tuple[str, ...], str]:
        """Return the files of the rules in force and their fingerprint; empty: they are new."""
        return self._searched_paths, "" if self._rejected or self._reader is not None else self._fingerprint

    def now(self) -> None:
        """Read the files again even if they have not changed (SIGHUP)."""
        self._forced = True
        self._begin_watching()
        if self._watch is not None:
            self._watch.note_change()

    def turn(self) -> None:
        """Handle events that are due."""
        if self._paused_until and time.monotonic() >= self._paused_until:
            self._listen()
        if self._reader is not None:
            if time.monotonic() >= self._reader.deadline:
                self._fail(f"the rule files could not be read within {_PATIENCE:.0f} seconds")
            return
        if self._watch is None:
            self._begin_watching()
            return
        if self._watch.is_due():
            self._check_files()

    def close(self) -> None:
        """Stop watching and reading."""
        if self._reader is not None:
            self._end_reader()
        self._close_last_policy()
        if self._watch is not None:
            if not self._paused_until and (descriptor := self._watch.fileno()) is not None:
                self._selector.unregister(descriptor)
            self._watch.close()
            self._watch = None

    def _begin_watching(self) -> None:
        if self._watch is not None:
            return
        self._watch = Watch(self._request.writable)
        self._listen()
        self._follow()
        self._check_files()  # changes before the watch began

    def _listen(self) -> None:
        self._paused_until = 0.0
        if self._watch is not None and (descriptor := self._watch.fileno()) is not None:
            self._selector.register(descriptor, selectors.EVENT_READ, self._notice)

    def _notice(self) -> None:
        """Read the pending events, then pause for a moment, so that a flood can't keep this process busy."""
        if self._watch is not None and (descriptor := self._watch.fileno()) is not None:
            self._watch.read()
            self._selector.unregister(descriptor)
            self._paused_until = time.monotonic() + EVENTS_PAUSE

    def _follow(self) -> None:
        if self._watch is not None:
            self._watch.follow(self._searched_paths, (str(rule_files.directory_of(self._request.system)),))

    def _check_files(self) -> None:
        self._mask_replaced()
        current = fingerprint(self._searched_paths, self._request.system)
        if current == self._fingerprint and not self._forced:
            return
        self._forced = False
        self._fingerprint = current
        self._follow()
        self._read([reread.describe_replaced(path) for path in self._find_unmasked()])

    def _mask_replaced(self) -> None:
        """Mask replaced rule files again, so that a task can't write what later runs read."""
        replaced = {path: rule_files.list_steps(path)[-1].identity for path in self._find_unmasked()}
        before, self._replaced_masks = self._replaced_masks, replaced
        # All fields are compared: a replacement may have the inode number of the file before.
        if any(identity is not None and identity != before.get(path) for path, identity in replaced.items()):
            self._mask(tuple(replaced))  # each was replaced, or is below a replaced directory

    def _find_unmasked(self) -> tuple[str, ...]:
        return rule_files.find_unmasked(self._searched_paths, self._request.writable, self._request.masked_files)

    def _read(self, problems: Sequence[str]) -> None:
        """Start the reader. A failure is retried: a task of the same user can use up processes (fork(2), EAGAIN).

        With `problems`, only root's files are read.
        """
        parent = os.getpid()
        descriptors: list[int] = []
        try:
            descriptors += os.pipe()
            descriptors.append(os.memfd_create("policy", os.MFD_CLOEXEC))
            pid = os.fork()
        except OSError as error:
            for descriptor in descriptors:
                os.close(descriptor)
            self._fingerprint = ""  # so the next check reads them again
            self._reject([f"no process can be started to read the rule files ({error.strerror}); Exeat retries soon"])
            return
        pipe, pipe_end, policy = descriptors
        if pid == 0:
            before = reread.RereadRequest(self._request, self._searched_paths, self._last_policy, tuple(problems))
            reread.run_reader(parent, pipe_end, policy, before)
        os.close(pipe_end)
        os.set_blocking(pipe, False)
        self._report = b""
        self._reader = _Reader(pid, pipe, policy, time.monotonic() + _PATIENCE, only_root=bool(problems))
        self._selector.register(pipe, selectors.EVENT_READ, self._read_report)

    def _read_report(self) -> None:
        assert self._reader is not None
        data = os.read(self._reader.pipe, 1 << 16)
        if data:
            self._report += data
            return
        try:
            report = strict_json.loads(self._report)
        except ValueError:
            self._fail("the rule files could not be read: the process that reads them ended")
            return
        was_sent = "revision" in report and self._send_policy(report)
        self._end_reader()
        if "asked" in report:
            self._searched_paths = tuple(report["asked"])
            self._fingerprint = report["seen"]
            self._follow()
        before, self._being_written = self._being_written, report["problems"] if "unwritten" in report else []
        if self._being_written and self._being_written == before and not was_sent:
            pass  # reported already
        elif "problems" in report:
            self._reject(report["problems"], to_gate=not was_sent)
        elif self._rejected:
            self._rejected = False
            print_notice("the rule files are valid again, and were loaded")
        if fingerprint(self._searched_paths, self._request.system) != self._fingerprint and self._watch is not None:
            self._watch.note_change()  # they were saved again meanwhile

    def _send_policy(self, report: Mapping[str, Any]) -> bool:
        """Send the new policy, or the earlier one merged with root's new files; returns whether one was sent."""
        assert self._reader is not None
        is_complete = "problems" not in report
        if not is_complete and report["revision"] == self._sent_revision:
            return False  # root's files are in force already
        news = RuleSetNews(rules=report["revision"])
        if report.get("asks"):
            news["asks"] = True  # the run then registers for approvals
        self._gate.send(news, [self._reader.policy])
        self._sent_revision = report["revision"]
        if is_complete:
            self._close_last_policy()
            self._last_policy = os.dup(self._reader.policy)
            before, self._settings_changed = self._settings_changed, bool(report["outboxed"])
            if self._settings_changed and not before:
                print_notice("the rules' `sandbox` changed; it applies to tasks that start from now on")
        return True

    def _close_last_policy(self) -> None:
        if self._last_policy >= 0:
            os.close(self._last_policy)
            self._last_policy = -1

    def _fail(self, problem: str) -> None:
        """Report a failed read; root's files are then read alone."""
        only_root = self._reader is not None and self._reader.only_root
        self._end_reader()
        if only_root:
            self._reject([problem])
        else:
            self._read([problem])

    def _end_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        self._selector.unregister(reader.pipe)
        processes.kill_and_wait(reader.pid)
        os.close(reader.pipe)
        os.close(reader.policy)

    def _reject(self, problems: Sequence[str], *, to_gate: bool = True) -> None:
        """Report problems; `to_gate`: also to the gate, if no policy carries them."""
        limited = reread.limit_problems(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        self._rejected = True
        stays = "those in force stay" if to_gate else "but root's new rules are in force in addition"
        print_notice(f"the rules were not loaded again, {stays}: {limited[0]}{more}")
        if to_gate:
            self._gate.send(SandboxNews(rules_rejected=limited))


QUIET = 0.15  # seconds without a change before files count as saved
LONGEST_WAIT = 2.0  # seconds of continuous changes before files are checked anyway
CHECK_EVERY = 5.0  # seconds
EVENTS_PAUSE = 0.05  # seconds between two reads of events: a task can cause them continuously, as with chmod(2)


class Watch:
    """Watch on the files of one policy. Close it."""

    def __init__(self, writable: Collection[str]) -> None:
        """Make an empty watch. `writable`: the trees that a task may write."""
        self._inotify: Inotify | None = None
        with contextlib.suppress(OSError):  # at the limit of inotify instances, files are polled
            self._inotify = Inotify()
        self._writable = writable
        self._names: dict[str, set[str]] = {}  # relevant names, by directory
        self._since = self._last = 0.0  # times of the first and last unchecked change
        self._last_check = time.monotonic()

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
                if step.identity is not None and not step.identity.is_directory and not step.identity.is_link:
                    files.add(step.path)
        self._inotify.clear()
        moved = inotify.IN_MOVE | inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB
        gone = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF
        itself = inotify.IN_MODIFY | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB | gone
        for path in sorted({*names, *files}):
            if path in names and any(contains(tree, path) for tree in self._writable):
                continue
            with contextlib.suppress(OSError):
                self._inotify.add(path, itself if path in files else moved | gone)
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
                self.note_change()
        if more:
            self.note_change()  # the unread events may be relevant

    def note_change(self) -> None:
        """Record that something changed now."""
        self._last = time.monotonic()
        self._since = self._since or self._last

    def wait(self) -> float:
        """Return the seconds until `is_due`."""
        now = time.monotonic()
        if self._since:
            return max(0.0, min(self._last + QUIET, self._since + LONGEST_WAIT) - now)
        return max(0.0, self._last_check + CHECK_EVERY - now)

    def is_due(self) -> bool:
        """Whether the files are due for a check; schedules the next one."""
        if self.wait() > 0:
            return False
        self._since = 0.0
        self._last_check = time.monotonic()
        return True

    def close(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            self._inotify.close()
