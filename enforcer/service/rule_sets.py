"""Rule sets: reads and watches the rule files of sandboxes, and sends them to workers, once for all that share them.

A run whose rule files lie where its own task may write has a set of its own, reloaded by its process. Other runs of the
same files share one; its policy is kept here, so that the next run neither reads nor compiles anything.
"""

import os
import selectors
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.policy.reload import Reloader
from enforcer.policy.rule_files import Seen, fingerprint
from enforcer.policy.run_request import Wanted
from enforcer.system.errors import HostError

if TYPE_CHECKING:
    from rules.matching.policy import Policy

_MOST_KEPT: Final = 16  # sets without a sandbox
_NOWHERE: Final = "/dev/null/nowhere"  # the workspace of all of them together: their tasks can write none of this
_LONGEST: Final = 300  # characters of why a policy can't be read
_LARGEST: Final = 1 << 20  # bytes of a policy that is kept here: a larger one takes too long to take in


class RuleSetKey(NamedTuple):
    """Which files: as absolute paths, and where root's rules are."""

    files: tuple[str, ...]
    system: str


class RuleSet:
    """One set: its number, the memory file that its policy is in, and who is under it."""

    def __init__(
        self, number: int, key: RuleSetKey | None, policy_file: int, seen: str, asked: tuple[str, ...]
    ) -> None:
        self.number = number
        self.key = key  # None: one run's own
        self.policy_file = policy_file
        self.policy: Policy | None = None
        self.seen = seen
        self.asked = asked
        self.sandboxes: set[str] = set()
        self.reloader: Reloader | None = None

    def replace(self, policy_file: int) -> None:
        """Take another policy, whose file is the caller's."""
        os.close(self.policy_file)
        self.policy_file = os.dup(policy_file)

    def close(self) -> None:
        """Watch nothing and hold nothing any more."""
        if self.reloader is not None:
            self.reloader.close()
            self.reloader = None
        os.close(self.policy_file)


class RuleSets:
    """All sets. `publish` tells the workers that have a set of what is new about it."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        publish: Callable[[RuleSet, Mapping[str, object], Sequence[int]], None],
        forget: Callable[[RuleSet], None],
    ) -> None:
        self._selector = selector
        self._publish = publish
        self._forget = forget
        self._sets: dict[int, RuleSet] = {}
        self._current: dict[RuleSetKey, RuleSet] = {}
        self._next = 1
        self._changes = 0

    def generation(self) -> int:
        """Return a number that is another one whenever something else is known."""
        return self._changes

    def get(self, number: int) -> RuleSet | None:
        """Return a set by its number."""
        return self._sets.get(number)

    def known(self, files: Sequence[Path], system: Path) -> tuple[int, Seen] | None:
        """Return which set these files are, and what was read from them, if they still are what was read."""
        found = self._current.get(RuleSetKey(tuple(map(_absolute, files)), str(system)))
        if found is None or found.policy is None or not found.seen:
            return None
        if fingerprint(found.asked, system) != found.seen:
            return None
        return found.number, Seen(found.policy, found.asked, found.seen)

    def last(self) -> tuple[Path, ...]:
        """Return the files of the set that came to be known last; nothing where there is none."""
        for key, rules in reversed(self._current.items()):
            if rules.policy is not None and rules.seen:
                return tuple(map(Path, key.files))
        return ()

    def take(self, said: Mapping[str, object], policy_file: int) -> RuleSet:
        """Return the set that a run is under, whose policy it has put in `policy_file`, the caller's.

        Raises HostError where that policy can't be read.
        """
        files, system = tuple(map(str, _list(said["files"]))), str(said["system"])
        seen, asked = str(said["seen"]), tuple(map(str, _list(said["asked"])))
        key = RuleSetKey(files, system) if said["shared"] is True and seen else None
        found = self._current.get(key) if key is not None else None
        if found is not None and found.seen == seen:
            return found
        policy = None if key is None else _policy(policy_file)
        number, self._next = self._next, self._next + 1
        made = self._sets[number] = RuleSet(number, key, os.dup(policy_file), seen, asked)
        made.policy = policy
        if key is not None:
            self._keep(made, key, Path(system))
        return made

    def _keep(self, made: RuleSet, key: RuleSetKey, system: Path) -> None:
        if made.policy is not None:
            wanted = Wanted((), "", made.policy, key.files, _NOWHERE, system=system, asked=made.asked, seen=made.seen)
            made.reloader = Reloader(wanted, _Pen(self, made), lambda _paths: None, self._selector)
        self._changes += 1
        before, self._current[key] = self._current.get(key), made
        if before is not None:
            self.let_go(before)
        self._tidy()

    def join(self, rules: RuleSet, sandbox: str) -> None:
        """Put a sandbox under a set."""
        rules.sandboxes.add(sandbox)

    def leave(self, rules: RuleSet, sandbox: str) -> None:
        """Take a sandbox out: it is gone."""
        rules.sandboxes.discard(sandbox)
        self.let_go(rules)

    def let_go(self, rules: RuleSet) -> None:
        """Drop a set that nobody is under, unless the next run may want it."""
        if rules.sandboxes or rules.number not in self._sets:
            return
        if rules.key is not None and self._current.get(rules.key) is rules:
            return
        del self._sets[rules.number]
        self._forget(rules)
        rules.close()

    def replaced(self, rules: RuleSet, revision: str, policy_file: int, *, asks: bool = False) -> None:
        """Put another policy in force for everybody under a set. The file is the caller's.

        One that can't be read is rejected: those under the set keep theirs, and a later run makes a set of its own.
        """
        if rules.key is not None:
            try:
                policy = _policy(policy_file)
            except HostError as error:
                self.rejected(rules, [str(error)])
                self.share_no_more(rules)
                return
            rules.policy = policy
            rules.seen = ""  # what it was read from is known in a moment
        rules.replace(policy_file)
        self._publish(rules, {"set": rules.number, "revision": revision, "asks": asks}, [policy_file])

    def share_no_more(self, rules: RuleSet) -> None:
        """Put no other sandbox under a set: its files have a policy that can't be read."""
        if rules.key is not None and self._current.get(rules.key) is rules:
            del self._current[rules.key]
            self._changes += 1

    def rejected(self, rules: RuleSet, problems: Sequence[str]) -> None:
        """Tell everybody under a set that its files are broken now."""
        self._publish(rules, {"set": rules.number, "rejected": list(problems)}, [])

    def turn(self) -> None:
        """Do what is due."""
        for rules in list(self._sets.values()):
            if rules.reloader is not None:
                rules.reloader.turn()
                before = rules.asked, rules.seen
                rules.asked, rules.seen = rules.reloader.in_force()
                self._changes += before != (rules.asked, rules.seen)
                self.let_go(rules)

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return min((rules.reloader.wait() for rules in self._sets.values() if rules.reloader is not None), default=60.0)

    def again(self) -> None:
        """Read everything again, whether it has changed or not."""
        for rules in self._sets.values():
            if rules.reloader is not None:
                rules.reloader.now()

    def _tidy(self) -> None:
        idle = [rules for rules in self._current.values() if not rules.sandboxes]
        for rules in idle[: max(len(idle) - _MOST_KEPT, 0)]:
            assert rules.key is not None
            del self._current[rules.key]
            self.let_go(rules)


class _Pen:
    """What a set's reloader writes with, in the place of one run's worker."""

    def __init__(self, sets: RuleSets, rules: RuleSet) -> None:
        self._sets = sets
        self._rules = rules

    def tell(self, what: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Pass on what it has to tell."""
        if descriptors:
            self._sets.replaced(self._rules, str(what["rules"]), descriptors[0], asks=what.get("asks") is True)
        elif isinstance(problems := what.get("rules_rejected"), list):
            self._sets.rejected(self._rules, problems)


def _policy(policy_file: int) -> "Policy | None":
    """Read a policy that one of our own processes has written; None: it is too large to keep. Raises HostError."""
    from proxy.dialing import proxy_auth
    from proxy.worker import policy_transfer

    if os.fstat(policy_file).st_size > _LARGEST:
        return None
    try:
        with policy_transfer.Copy(os.dup(policy_file)) as file:
            proxy_auth.take(file)
            return policy_transfer.take(file)
    except ValueError as error:
        raise unreadable_policy("the service", str(error)) from error


def unreadable_policy(where: str, why: str) -> HostError:
    """Return what to raise or report where a compiled policy can't be read."""
    return HostError(
        f"{where} can't read the compiled rules ({why[:_LONGEST]})",
        "this is a bug of Exeat's: run `exeat doctor`, and report what it prints with this sentence",
    )


def _absolute(path: Path) -> str:
    return os.path.join(os.getcwd(), path)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def policy_in_memory(policy: "Policy") -> int:
    """Return a memory file with a policy. It has no login: a run under rules with one has a worker of its own."""
    from proxy.dialing import proxy_auth
    from proxy.worker import policy_transfer

    file = os.memfd_create("policy", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(file), "wb") as out:
        proxy_auth.send(None, out)
        policy_transfer.send(policy, out)
    return file
