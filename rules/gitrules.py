"""What a rule says about git: repositories, fetching, and pushes by ref and change. The `git:` of a rule.

Read from the protocol, never from what a client says about itself. Repositories are compared as paths are, without
`.git`; what holds back compares repositories and refs without case, because many servers do.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, Self

from rules.attempt import Change
from rules.globs import Part, covers, fold, folded
from rules.paths import PathPattern, Reading, readings

_SUFFIX: Final = ".git"


def bare_repository(path: str) -> str:
    """Take off what servers leave out themselves: a slash and `.git` at the end, however often."""
    while path.endswith(("/", ".git")):
        path = path.removesuffix("/").removesuffix(".git")
    return path


def repositories(path: str) -> "tuple[Reading, ...]":
    """List the repositories that a path may mean, its `.git` left out after every way to decode it; none: no path.

    In another case it is left out by some servers and not by others.
    """
    ways = readings("/" + bare_repository(path))
    exact = [_without_suffix(way, str) for way in ways]
    return tuple(dict.fromkeys((*exact, *[_without_suffix(way, fold) for way in exact])))


def _without_suffix(way: Reading, form: Callable[[str], str]) -> Reading:
    """Leave `.git` out at the end; a slash in a segment was written `%2F`, and stays apart from those that were not."""
    while way and (not way[-1] or form(way[-1]).endswith(_SUFFIX)):
        way = (*way[:-1], way[-1][: -len(_SUFFIX)]) if way[-1] else way[:-1]
    return way


class RefPattern(NamedTuple):
    """A pattern for refs: `refs/heads/main`, `refs/heads/*`, `refs/**`."""

    text: str
    parts: tuple[Part, ...]
    folded: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern. Raises ValueError with what to write instead."""
        if text in {"true", "*", "**"}:
            raise ValueError(f"`{text}` is no ref: every ref is `refs/**`, every branch `refs/heads/**`")
        if not text.startswith("refs/") or text.endswith("/"):
            raise ValueError(f"`{text}` must be a whole ref, as in `refs/heads/{text.strip('/') or 'main'}`")
        exact = PathPattern.parse("/" + text)
        return cls(exact.text[1:], exact.parts, folded(exact.parts))

    def matches(self, ref: Reading, *, folded: bool = False) -> bool:
        """Whether the segments of a ref are covered."""
        return covers(self.folded if folded else self.parts, ref)


class RepoPattern(NamedTuple):
    """A pattern for repositories: `acme/web`, `acme/*`, `**`."""

    text: str
    parts: tuple[Part, ...]
    folded: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern, with or without `.git` at its end. Raises ValueError with what to write instead."""
        bare = bare_repository(text)
        if bare.startswith("/") or "://" in bare:
            raise ValueError(f"`{text}` must be the path of a repository on its host, as in `acme/web`")
        exact = PathPattern.parse("/" + bare)
        if bare_repository(exact.text[1:]) != exact.text[1:]:
            return cls.parse(exact.text[1:])  # `.git` was written with escapes
        return cls(exact.text[1:], exact.parts, folded(exact.parts))

    def matches(self, repo: Reading, *, folded: bool = False) -> bool:
        """Whether the segments of a repository's path are covered."""
        return covers(self.folded if folded else self.parts, repo)


class GitRule(NamedTuple):
    """The `git:` of a rule. `push` None: no push is covered."""

    repos: tuple[RepoPattern, ...]
    fetch: bool = False
    push: tuple[RefPattern, ...] | None = None
    changes: frozenset[Change] = frozenset()
