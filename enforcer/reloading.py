"""Reading rule files again while their task runs, and giving the worker what is right: the worker can't read files.

They are read, checked, compiled and tried by a process of its own, so that the supervisor goes on; what it made is
bytes in a memory file, which the worker is handed. What is wrong is told, and the rules in force stay. Home of the rule
that a task never decides what its own rules are: what it could have written is not read (`exposure`).
"""

import contextlib
import hashlib
import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

from enforcer import exposure, linux, rules_in_force, trail
from enforcer.errors import HostError
from rules.problems import RuleFileError

if TYPE_CHECKING:
    from enforcer.wanted import Wanted
    from enforcer.watching import Watch

_FIRST_LOOK: Final = 0.25  # seconds into a run: shorter ones don't pay for watching
_PATIENCE: Final = 60.0  # seconds for reading
_TRIES: Final = 5  # while files change as they are read
_MOST_PROBLEMS: Final = 20
_LONGEST: Final = 1000  # characters of a problem

type Cover = Callable[[Sequence[str]], None]  # has the sandbox cover paths anew


class Teller(Protocol):
    """Who is told: a worker, or the service for all who are under the same rules."""

    def tell(self, what: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Take a message."""


class _Reader(NamedTuple):
    """A process that reads: its pid, where it says how it went, where the policy is put, and by when."""

    pid: int
    says: int
    policy: int
    deadline: float


class Reloader:
    """One run's rule files, from when its task has started. For the supervisor's loop; close it."""

    def __init__(self, wanted: "Wanted", gate: Teller, cover: Cover, selector: selectors.BaseSelector) -> None:
        self._wanted = wanted
        self._gate = gate
        self._cover = cover
        self._selector = selector
        self._asked: tuple[str, ...] = wanted.asked
        self._seen = wanted.seen
        self._began = time.monotonic()
        self._watch: Watch | None = None
        self._reader: _Reader | None = None
        self._said = b""
        self._forced = False
        self._outboxed = False  # whether the rules in force have another `sandbox` than this run
        self._rejected = False  # whether the last that was read could not be used
        self._covering: dict[str, trail.What | None] = {}  # what was covered again last, by path
        self._deaf = 0.0  # until then nobody listens for changes; 0: somebody does

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        due = self._due()
        return min(due, max(0.0, self._deaf - time.monotonic())) if self._deaf else due

    def _due(self) -> float:
        now = time.monotonic()
        if self._reader is not None:
            return max(0.0, self._reader.deadline - now)
        if self._watch is None:
            return max(0.0, self._began + _FIRST_LOOK - now)
        return self._watch.wait()

    def in_force(self) -> tuple[tuple[str, ...], str]:
        """Return which files the rules in force were read from, and what those were like; empty: they are new."""
        return self._asked, "" if self._rejected or self._reader is not None else self._seen

    def now(self) -> None:
        """Read the files again, whether they have changed or not (SIGHUP)."""
        self._forced = True
        self._begin_watching()
        if self._watch is not None:
            self._watch.stir()

    def turn(self) -> None:
        """Do what is due."""
        if self._deaf and time.monotonic() >= self._deaf:
            self._listen()
        if self._reader is not None:
            if time.monotonic() >= self._reader.deadline:
                self._give_up()
            return
        if self._watch is None:
            if time.monotonic() >= self._began + _FIRST_LOOK:
                self._begin_watching()
            return
        if self._watch.is_due():
            self._look()

    def close(self) -> None:
        """Watch and read nothing any more."""
        if self._reader is not None:
            self._end_reader()
        if self._watch is not None:
            if not self._deaf and (descriptor := self._watch.fileno()) is not None:
                self._selector.unregister(descriptor)
            self._watch.close()
            self._watch = None

    def _begin_watching(self) -> None:
        if self._watch is not None:
            return
        from enforcer.watching import Watch

        self._watch = Watch(self._wanted.writable)
        self._listen()
        self._follow()
        self._look()  # at what happened before

    def _listen(self) -> None:
        self._deaf = 0.0
        if self._watch is not None and (descriptor := self._watch.fileno()) is not None:
            self._selector.register(descriptor, selectors.EVENT_READ, self._notice)

    def _notice(self) -> None:
        """Read what happened, and for a moment no more of it: whoever causes it can't keep this process busy."""
        from enforcer.watching import DEAF

        if self._watch is not None and (descriptor := self._watch.fileno()) is not None:
            self._watch.read()
            self._selector.unregister(descriptor)
            self._deaf = time.monotonic() + DEAF

    def _follow(self) -> None:
        if self._watch is not None:
            self._watch.follow(self._asked, (str(rules_in_force.directory_of(self._wanted.system)),))

    def _look(self) -> None:
        """See whether the files are still what was read last, and read them if not."""
        self._look_after_covers()
        seen = fingerprint(self._asked, self._wanted.system)
        if seen == self._seen and not self._forced:
            return
        self._forced = False
        self._seen = seen
        self._follow()
        lost = self._uncovered()
        if lost:
            self._reject([_replaced(path) for path in lost])
        else:
            self._read()

    def _look_after_covers(self) -> None:
        """Have covered again what was replaced, so that a task can't write what later runs would read."""
        there = {path: trail.trail(path)[-1].what for path in self._uncovered()}
        before, self._covering = self._covering, there
        # Compared as a whole: a file that took the place of another may have been given its inode.
        if any(what is not None and what != before.get(path) for path, what in there.items()):
            self._cover(tuple(there))  # each is another one, or lies below such a one

    def _uncovered(self) -> tuple[str, ...]:
        return exposure.uncovered(self._asked, self._wanted.writable, self._wanted.covers)

    def _read(self) -> None:
        """Begin to read. A task of the same user can use up what that takes (fork(2), EAGAIN): tried again then."""
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
            _be_reader(parent, its, policy, self._wanted, self._asked)
        os.close(its)
        os.set_blocking(says, False)
        self._said = b""
        self._reader = _Reader(pid, says, policy, time.monotonic() + _PATIENCE)
        self._selector.register(says, selectors.EVENT_READ, self._hear)

    def _hear(self) -> None:
        """Take in what the reader says; at its end, act on it."""
        assert self._reader is not None
        data = os.read(self._reader.says, 1 << 16)
        if data:
            self._said += data
            return
        try:
            said = json.loads(self._said)
        except ValueError:
            said = {"problems": ["the rule files could not be read: the process that reads them ended"]}
        if "problems" not in said:
            asks = {"asks": True} if said.get("asks") else {}  # of people: who looks after the task sees to that
            self._gate.tell({"rules": said["revision"], **asks}, [self._reader.policy])
            before, self._outboxed = self._outboxed, bool(said["outboxed"])
            if self._outboxed and not before:
                _say("the rules' `sandbox` is another now: this is for tasks that start from here on")
        self._end_reader()
        if "asked" in said:
            self._asked = tuple(said["asked"])
            self._seen = said["seen"]
            self._follow()
        if "problems" in said:
            self._reject(said["problems"])
        elif self._rejected:
            self._rejected = False
            _say("the rules are right again, and were loaded")
        if fingerprint(self._asked, self._wanted.system) != self._seen and self._watch is not None:
            self._watch.stir()  # saved again meanwhile

    def _give_up(self) -> None:
        self._end_reader()
        self._reject([f"the rule files could not be read within {_PATIENCE:.0f} seconds"])

    def _end_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        self._selector.unregister(reader.says)
        with contextlib.suppress(ProcessLookupError):
            os.kill(reader.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(reader.pid, 0)
        os.close(reader.says)
        os.close(reader.policy)

    def _reject(self, problems: Sequence[str]) -> None:
        told = [problem[:_LONGEST] for problem in problems[:_MOST_PROBLEMS]]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        self._rejected = True
        _say(f"the rules were not loaded again, those in force stay: {told[0]}{more}")
        self._gate.tell({"rules_rejected": told})


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"exeat: {sentence}\n".encode("utf-8", "backslashreplace"))


def fingerprint(asked: Sequence[str], system: Path) -> str:
    """Return a text that changes with whatever these paths, or root's rules, hold."""
    directory = str(rules_in_force.directory_of(system))
    steps = {*trail.fingerprint((*asked, directory)), trail.listed(directory)}
    return hashlib.sha256(repr(sorted(map(repr, steps))).encode("utf-8", "surrogateescape")).hexdigest()


def absolute(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return paths that mean the same wherever this process goes; symbolic links on them stay."""
    return tuple(dict.fromkeys(os.path.join(os.getcwd(), path) for path in paths))


def _replaced(path: str) -> str:
    return (
        f"`{path}` lies where the task may write, and is not the one that was covered when the task started: whether "
        "it is as you saved it can't be told; look at it, and keep rules outside of the workspace"
    )


def _be_reader(parent: int, says: int, policy: int, wanted: "Wanted", asked: Sequence[str]) -> NoReturn:
    """Read the files, put the policy into its file, and say how it went. The process ends here."""
    try:
        try:
            linux.die_with_parent(signal.SIGKILL, parent)
            said = _try_to_read(wanted, tuple(asked), policy)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the rules in force stay
            said = {"problems": [f"the rule files could not be read: {type(error).__name__}: {error}"]}
        with os.fdopen(says, "wb") as pipe:
            pipe.write(json.dumps(said).encode())
    finally:
        os._exit(0)  # whatever was raised: nothing gets from here to where the supervisor goes on


def _try_to_read(wanted: "Wanted", asked: tuple[str, ...], policy: int) -> dict[str, object]:
    """Read until nothing has changed meanwhile, nor was anything read that had not been looked at before."""
    for _ in range(_TRIES):
        before = fingerprint(asked, wanted.system)
        said, found = _read_once(wanted, policy)
        seen = fingerprint(found or asked, wanted.system)
        if set(found) <= set(asked) and fingerprint(asked, wanted.system) == before:
            return {**said, "asked": list(found or asked), "seen": seen}
        asked = tuple(dict.fromkeys((*asked, *found)))
    return {"problems": ["the rule files change faster than they can be read"]}


def _read_once(wanted: "Wanted", policy: int) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return what there is to say, and which files were looked for."""
    from enforcer import upstream
    from proxy import handover
    from proxy.dialling import proxy_auth

    try:
        loaded = rules_in_force.load([Path(path) for path in wanted.rules], wanted.system)
    except RuleFileError as error:
        return {"problems": list(map(str, error.problems))}, absolute(error.asked)
    except HostError as error:
        return {"problems": [str(error)]}, ()
    found = absolute(loaded.asked)
    lost = exposure.uncovered(found, wanted.writable, wanted.covers)
    problems = exposure.exposed(found, wanted.writable) or [_replaced(path) for path in lost]
    if loaded.policy.settings.dns_pool != wanted.policy.settings.dns_pool:
        problems.append("`dns_pool` can't change while a task runs: start it anew")
    if loaded.policy.settings.upstream_auth not in (None, wanted.policy.settings.upstream_auth):
        problems.append("`upstream_auth` can't be another file while a task runs, which may be shown it: start it anew")
    if loaded.policy.secrets != wanted.policy.secrets:
        problems.append("`secrets` can't change while a task runs, which has their placeholders: start it anew")
    if problems:
        return {"problems": problems}, found
    try:
        login = upstream.login(loaded.policy)
    except HostError as error:
        return {"problems": [str(error)]}, found
    os.ftruncate(policy, 0)
    with os.fdopen(os.dup(policy), "wb") as file:
        file.seek(0)
        proxy_auth.send(login, file)
        handover.send(loaded.policy, file)
    now, then = loaded.policy, wanted.policy
    outboxed = (now.box, now.floor) != (then.box, then.floor)
    return {"revision": now.revision, "asks": now.needs_approvals, "outboxed": outboxed}, found
