"""What was asked about, in the words of a rule: the one destination, and of a request the one method, path or ref."""

import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.addresses import parse_host
from rules.attempt import NO_LABELS, Attempt, Change, Git, GitService, Protocol, Request
from rules.paths import readings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import date

_PLAIN: Final = re.compile(r"[A-Za-z0-9/][A-Za-z0-9/._-]*", re.ASCII)  # to YAML text, wherever it stands
_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null"})  # and to people something else
_USUAL: Final = {Protocol.TLS: 443, Protocol.HTTP: 80}


class Wanted(NamedTuple):
    """An attempt that was asked about. `method` empty: a connection as a whole.

    `path` is as it was sent, with its query. `repo` is as in `Git`, with `refs` of a push, each with what is done to
    it; without any it is a fetch. `tainted`: by a task that has read what nobody vouches for.
    """

    protocol: Protocol
    host: str
    port: int
    method: str = ""
    path: str = ""
    body: bool = False
    websocket: bool = False
    repo: str = ""
    refs: tuple[tuple[str, Change], ...] = ()
    task: str = ""
    labels: "Mapping[str, str]" = NO_LABELS
    at: "date | None" = None
    tainted: bool = False

    def attempts(self) -> "tuple[Attempt, ...]":
        """Make the attempts of it: one, or one a ref. Raises InvalidName."""
        target = parse_host(self.host)
        made = (
            Attempt(self.protocol, target, self.port, request, self.task, self.labels, self.at, self.tainted)
            for request in self._requests()
        )
        return tuple(made)

    def _requests(self) -> "Iterator[Request | None]":
        if not self.method:
            yield None
            return
        head = Request(self.method, self.path, (("host", self.host),), self.body, self.websocket, credential=None)
        if not self.repo:
            yield head
            return
        service = GitService.PUSH if self.refs else GitService.FETCH
        for ref, change in self.refs or ((None, None),):
            git = Git(service, self.repo, ref, change)
            yield Request(head.method, head.path, head.headers, head.body, git=git)

    def matching(self) -> dict[str, str]:
        """Write it as the keys of a rule, each with its value as it stands in a flow mapping.

        Raises ValueError where rules have no word for it that means this alone.
        """
        ports = str(self.port) if self.port == _USUAL.get(self.protocol) else f"{self.port}/{self.protocol}"
        said = {"to": scalar(self.host), "ports": f"[{ports}]"}
        if self.repo:
            self._no_wildcard(self.repo, "the repository")
            said["git"] = f"{{repos: [{scalar(self.repo)}], {self._git()}}}"
        elif self.method:
            said["http"] = f"{{{', '.join(self._http())}}}"
        return said

    def _git(self) -> str:
        for ref, _ in self.refs:
            self._no_wildcard(ref, "the ref")
        if not self.refs:
            return "fetch: true"
        refs = dict.fromkeys(scalar(ref) for ref, _ in self.refs)
        changes = dict.fromkeys(change.value for _, change in self.refs)
        return f"push: [{', '.join(refs)}], changes: [{', '.join(changes)}]"

    def _http(self) -> "Iterator[str]":
        path = self.path.partition("?")[0]
        self._no_wildcard(path, "the path")
        if len(readings(path)) != 1:
            raise ValueError(f"servers read the path {scalar(path)} in more than one way")
        yield f"methods: [{scalar(self.method)}]"
        yield f"paths: [{scalar(path)}]"
        if self.body and self.method in {"GET", "HEAD"}:
            yield "body: true"
        if self.websocket:
            yield "websocket: true"

    def _no_wildcard(self, text: str, what: str) -> None:
        if "*" in text:
            raise ValueError(f"{what} has a `*`, which rules take for any text")


def scalar(text: str) -> str:
    """Write a text as YAML has it, in quotes where it could be taken for anything else."""
    plain = _PLAIN.fullmatch(text) and not text.endswith(":") and text.lower() not in _WORDS
    return text if plain else json.dumps(text)
