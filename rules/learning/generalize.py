"""Generalizes recorded attempts: paths into patterns, pushes into git rules."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from rules.attempt import RefChange
from rules.rule import RefPattern, RepoPattern, repository_readings
from rules.values.globs import ONE, Part
from rules.values.paths import PathPattern, Reading, percent_encode
from rules.verdicts import Verdict

ENOUGH: Final = 3  # distinct values of a segment

type Learned = tuple[Part, ...]

_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~@:+=,$!")


def generalize_paths(readings: Iterable[Reading]) -> set[Learned]:
    """Return patterns that match every reading, and beyond them only what a `*` stands for."""
    patterns: set[Learned] = set(readings)
    while True:
        found = _once(patterns)
        if found == patterns:
            return patterns
        patterns = found


def _once(patterns: set[Learned]) -> set[Learned]:
    """Replace the last segment with enough values by `*`, for patterns that differ only there."""
    for back in range(1, max(map(len, patterns), default=0) + 1):
        groups: dict[tuple[Learned, Learned], set[Part]] = defaultdict(set)
        for pattern in patterns:
            if len(pattern) >= back:
                at = len(pattern) - back
                groups[pattern[:at], pattern[at + 1 :]].add(pattern[at])
        wide = {around: values for around, values in groups.items() if len(values) > 1 and _is_wide(values)}
        if wide:
            merged = set(patterns)
            for (before, after), values in wide.items():
                merged -= {(*before, value, *after) for value in values}
                merged.add((*before, ONE, *after))
            return merged
    return patterns


def _is_wide(values: set[Part]) -> bool:
    return ONE in values or len(values) >= ENOUGH


def matches_learned(pattern: Learned, reading: Reading) -> bool:
    """Whether a pattern covers a reading."""
    return len(pattern) == len(reading) and all(
        part is ONE or part == segment for part, segment in zip(pattern, reading, strict=True)
    )


def write_pattern(pattern: Learned) -> str | None:
    """Write a pattern as in a rule file, in ASCII without quoting; None if the rule language can't express it."""
    text = "/" + "/".join("*" if part is ONE else percent_encode(str(part), _PLAIN) for part in pattern)
    try:
        read = PathPattern.parse(text)
    except ValueError:
        return None
    return text if read.parts == pattern else None


class GitObservation(NamedTuple):
    """A fetch (`ref` and `change` None), or what a push did to one ref; and the action that it passed under."""

    repo: str  # its path on the host as it was sent, without `.git`
    ref: str | None
    change: RefChange | None
    action: Verdict


class GitDraft(NamedTuple):
    """The `git:` of a rule, as texts of the rule language. `change` None: it is about fetching."""

    repos: tuple[str, ...]
    refs: tuple[str, ...] = ()
    change: RefChange | None = None
    example: str = ""  # a ref that was seen


def git_drafts(
    seen: Mapping[GitObservation, Any], looks_secret: Callable[[str], bool]
) -> Iterator[tuple[GitDraft | None, Verdict, tuple[GitObservation, ...]]]:
    """Yield each draft with its action and observations; None: no rule can cover them, or they look secret.

    Fetches of all repositories share a rule. Pushes have a rule per repository, since refs belong to one repository.
    """
    fetched: dict[Verdict, dict[str, list[GitObservation]]] = defaultdict(lambda: defaultdict(list))
    pushed: dict[tuple[str, RefChange, Verdict], dict[Reading, list[GitObservation]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for each in sorted(seen, key=str):
        repo = _repository(each.repo)
        if repo is None or looks_secret(repo) or looks_secret(each.ref or "") or not _is_whole(each.ref):
            yield None, each.action, (each,)
        elif each.ref is None or each.change is None:
            fetched[each.action][repo].append(each)
        else:
            pushed[repo, each.change, each.action][tuple(each.ref.split("/"))].append(each)
    for action, repos in fetched.items():
        yield GitDraft(tuple(repos)), action, tuple(each for every in repos.values() for each in every)
    for (repo, change, action), refs in pushed.items():
        patterns = {pattern: _ref(pattern) for pattern in generalize_paths(refs)}
        texts = tuple(sorted(text for text in patterns.values() if text is not None))
        good = [pattern for pattern, text in patterns.items() if text is not None]
        for ref, seen_there in refs.items():
            if not any(matches_learned(pattern, ref) for pattern in good):
                yield None, action, tuple(seen_there)
        merged = tuple(
            each for ref, every in refs.items() if any(matches_learned(p, ref) for p in good) for each in every
        )
        if merged:
            yield GitDraft((repo,), texts, change, merged[0].ref or ""), action, merged


def _is_whole(ref: str | None) -> bool:
    """Whether rules can allow a ref: it is valid in git (git-check-ref-format(1))."""
    if ref is None:
        return True
    if not _is_text(ref):
        return False
    return ref.startswith("refs/") and all(ref.split("/")) and not ref.endswith(".lock") and ".." not in ref


def _is_text(text: str) -> bool:
    """Whether every byte of it was part of a character: no rule can name another."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _repository(repo: str) -> str | None:
    """Write a repository as a rule has it; None: servers read it in several ways, or no rule can name it."""
    ways = repository_readings(repo) if _is_text(repo) else ()
    text = write_pattern(ways[0]) if len(ways) == 1 and ways[0] else None
    try:
        return None if text is None else RepoPattern.parse(text[1:]).text
    except ValueError:
        return None


def _ref(pattern: "Learned") -> str | None:
    text = write_pattern(pattern)
    try:
        return None if text is None or RefPattern.parse(text[1:]).parts != pattern else text[1:]
    except ValueError:
        return None
