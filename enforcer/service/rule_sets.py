"""Rule sets: reads and watches the rule files of sandboxes, and sends them to workers, once for all that share them.

A run whose task may write its rule files has a set of its own, reloaded by its process. Other runs with the same files
share one; its policy stays in memory, so the next run neither reads nor compiles anything.
"""

import os
import selectors
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.policy.reload import Reloader
from enforcer.policy.rule_files import LoadedRules, fingerprint
from enforcer.policy.run_request import RunRequest
from enforcer.system.errors import HostError

if TYPE_CHECKING:
    from proxy.worker.messages import RuleSetNews
    from rules.matching.policy import Policy

_MOST_KEPT: Final = 16  # sets kept without a sandbox
_NO_WORKSPACE: Final = "/dev/null/nowhere"  # the workspace of a shared set: no task can write it
_LONGEST: Final = 300  # characters of the reason
_LARGEST: Final = 1 << 20  # bytes of a policy that is kept: a larger one takes too long to read


class RuleSetKey(NamedTuple):
    """The files of a rule set, as absolute paths, and the directory of root's rules."""

    files: tuple[str, ...]
    system: str


class RuleSet:
    """A rule set: its number, the memory file of its policy, and the sandboxes under it."""

    def __init__(
        self,
        number: int,
        key: RuleSetKey | None,
        policy_file: int,
        files_fingerprint: str,
        searched_paths: tuple[str, ...],
    ) -> None:
        self.number = number
        self.key = key  # None: of one run alone
        self.policy_file = policy_file
        self.policy: Policy | None = None
        self.fingerprint = files_fingerprint
        self.searched_paths = searched_paths
        self.sandboxes: set[str] = set()
        self.reloader: Reloader | None = None

    def replace(self, policy_file: int) -> None:
        """Replace the policy; the file stays the caller's."""
        os.close(self.policy_file)
        self.policy_file = os.dup(policy_file)

    def close(self) -> None:
        """Stop watching, and close the policy file."""
        if self.reloader is not None:
            self.reloader.close()
            self.reloader = None
        os.close(self.policy_file)


class RuleSets:
    """All rule sets. `publish` sends news about a set to the workers that have it."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        publish: Callable[[RuleSet, "RuleSetNews", Sequence[int]], None],
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
        """Return a number that changes whenever the known sets change."""
        return self._changes

    def get(self, number: int) -> RuleSet | None:
        """Return a set by its number."""
        return self._sets.get(number)

    def find(self, files: Sequence[Path], system: Path) -> tuple[int, LoadedRules] | None:
        """Return the number and content of the set for these files, if the files are unchanged."""
        found = self._current.get(RuleSetKey(tuple(map(_absolute, files)), str(system)))
        if found is None or found.policy is None or not found.fingerprint:
            return None
        if fingerprint(found.searched_paths, system) != found.fingerprint:
            return None
        return found.number, LoadedRules(found.policy, found.searched_paths, found.fingerprint)

    def newest_files(self) -> tuple[Path, ...]:
        """Return the files of the newest set; empty if there is none."""
        for key, rules in reversed(self._current.items()):
            if rules.policy is not None and rules.fingerprint:
                return tuple(map(Path, key.files))
        return ()

    def add(self, fields: Mapping[str, object], policy_file: int) -> RuleSet:
        """Return the rule set of a run; its policy is in `policy_file`, which stays the caller's.

        Raises HostError if the policy can't be read.
        """
        files, system = tuple(map(str, _check_list(fields["files"]))), str(fields["system"])
        files_fingerprint, searched_paths = str(fields["seen"]), tuple(map(str, _check_list(fields["asked"])))
        key = RuleSetKey(files, system) if fields["shared"] is True and files_fingerprint else None
        found = self._current.get(key) if key is not None else None
        if found is not None and found.fingerprint == files_fingerprint:
            return found
        policy = None if key is None else _read_policy(policy_file)
        number, self._next = self._next, self._next + 1
        rule_set = self._sets[number] = RuleSet(number, key, os.dup(policy_file), files_fingerprint, searched_paths)
        rule_set.policy = policy
        if key is not None:
            self._share(rule_set, key, Path(system))
        return rule_set

    def _share(self, rule_set: RuleSet, key: RuleSetKey, system: Path) -> None:
        if rule_set.policy is not None:
            run_request = RunRequest(
                (),
                "",
                rule_set.policy,
                key.files,
                _NO_WORKSPACE,
                system=system,
                searched_paths=rule_set.searched_paths,
                fingerprint=rule_set.fingerprint,
            )
            rule_set.reloader = Reloader(
                run_request, _ReloadMessages(self, rule_set), lambda _paths: None, self._selector
            )
        self._changes += 1
        before, self._current[key] = self._current.get(key), rule_set
        if before is not None:
            self.drop_unused(before)
        self._drop_idle()

    def join(self, rules: RuleSet, sandbox: str) -> None:
        """Put a sandbox under a set."""
        rules.sandboxes.add(sandbox)

    def leave(self, rules: RuleSet, sandbox: str) -> None:
        """Remove a sandbox that has ended."""
        rules.sandboxes.discard(sandbox)
        self.drop_unused(rules)

    def drop_unused(self, rules: RuleSet) -> None:
        """Drop a set without sandboxes, unless it is kept for the next run."""
        if rules.sandboxes or rules.number not in self._sets:
            return
        if rules.key is not None and self._current.get(rules.key) is rules:
            return
        del self._sets[rules.number]
        self._forget(rules)
        rules.close()

    def replace_policy(self, rules: RuleSet, revision: str, policy_file: int, *, asks: bool = False) -> None:
        """Replace the policy of a set, for all of its sandboxes. The file is the caller's.

        One that can't be read is rejected: the sandboxes keep theirs, and a later run makes a new set.
        """
        if rules.key is not None:
            try:
                policy = _read_policy(policy_file)
            except HostError as error:
                self.report_rejection(rules, [str(error)])
                self.stop_sharing(rules)
                return
            rules.policy = policy
            rules.fingerprint = ""  # set by the next turn
        rules.replace(policy_file)
        news: RuleSetNews = {"set": rules.number, "revision": revision, "asks": asks}
        self._publish(rules, news, [policy_file])

    def stop_sharing(self, rules: RuleSet) -> None:
        """Put no further sandbox under a set: its files have a policy that can't be read."""
        if rules.key is not None and self._current.get(rules.key) is rules:
            del self._current[rules.key]
            self._changes += 1

    def report_rejection(self, rules: RuleSet, problems: Sequence[str]) -> None:
        """Report to all sandboxes of a set that its files are broken now."""
        news: RuleSetNews = {"set": rules.number, "rejected": list(problems)}
        self._publish(rules, news, [])

    def turn(self) -> None:
        """Do what is due."""
        for rules in list(self._sets.values()):
            if rules.reloader is not None:
                rules.reloader.turn()
                before = rules.searched_paths, rules.fingerprint
                rules.searched_paths, rules.fingerprint = rules.reloader.in_force()
                self._changes += before != (rules.searched_paths, rules.fingerprint)
                self.drop_unused(rules)

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        return min((rules.reloader.wait() for rules in self._sets.values() if rules.reloader is not None), default=60.0)

    def reload_all(self) -> None:
        """Read all files again, changed or not."""
        for rules in self._sets.values():
            if rules.reloader is not None:
                rules.reloader.now()

    def _drop_idle(self) -> None:
        idle = [rules for rules in self._current.values() if not rules.sandboxes]
        for rules in idle[: max(len(idle) - _MOST_KEPT, 0)]:
            assert rules.key is not None
            del self._current[rules.key]
            self.drop_unused(rules)


class _ReloadMessages:
    """Passes messages of a set's reloader on, in place of one run's worker."""

    def __init__(self, sets: RuleSets, rules: RuleSet) -> None:
        self._sets = sets
        self._rules = rules

    def send(self, fields: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Pass a message on."""
        if descriptors:
            self._sets.replace_policy(
                self._rules, str(fields["rules"]), descriptors[0], asks=fields.get("asks") is True
            )
        elif isinstance(problems := fields.get("rules_rejected"), list):
            self._sets.report_rejection(self._rules, problems)


def _read_policy(policy_file: int) -> "Policy | None":
    """Read a policy that one of Exeat's processes has written; None: it is too large to keep. Raises HostError."""
    from proxy.dialing import proxy_auth
    from proxy.worker import policy_transfer

    if os.fstat(policy_file).st_size > _LARGEST:
        return None
    try:
        with policy_transfer.DescriptorReader(os.dup(policy_file)) as file:
            proxy_auth.take(file)
            return policy_transfer.receive(file)
    except ValueError as error:
        raise unreadable_policy("the service", str(error)) from error


def unreadable_policy(where: str, why: str) -> HostError:
    """Return the error for a compiled policy that can't be read."""
    return HostError(
        f"{where} can't read the compiled rules ({why[:_LONGEST]})",
        "this is a bug of Exeat: run `exeat doctor`, and report its output with this message",
    )


def _absolute(path: Path) -> str:
    return os.path.join(os.getcwd(), path)


def _check_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def policy_in_memory(policy: "Policy") -> int:
    """Return a memory file with a policy, without a login: a run under rules with one has a worker of its own."""
    from proxy.dialing import proxy_auth
    from proxy.worker import policy_transfer

    file = os.memfd_create("policy", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(file), "wb") as out:
        proxy_auth.send(None, out)
        policy_transfer.send(policy, out)
    return file
