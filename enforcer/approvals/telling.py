"""Whom approvers.yaml has told of a question, and which programs are asked about it: what they get, what they answer.

Texts in a card are a task's: what a receiver would take for markup is escaped, and what a terminal would act on is
spelled out (invariant 7). A program's failure is a pass to people, and says nothing for or against.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.approvals.outward import Failed, Receiver, Send, Threads, command, webhook
from proxy import strict_json
from proxy.approvals.model import Vote
from proxy.telemetry.visible import visible

if TYPE_CHECKING:
    from proxy.approvals.people import Notice, People, Reviewer, Secret

_PATIENCE: Final = 10.0  # seconds for one that is only told
_LONGEST: Final = 500  # characters of what a program says
_ANSWERS: Final = {"approve": Vote.APPROVE, "reject": Vote.REJECT, "pass": Vote.PASS}
_MARKUP: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # api.slack.com/reference/surfaces/formatting


class Reviewed(NamedTuple):
    """What a program says to a question."""

    vote: Vote
    why: str


class Telling:
    """Everybody who is told. Made anew when approvers.yaml changes; `say` is told what an admin should know."""

    def __init__(self, people: "People", threads: Threads, say: Callable[[str], None]) -> None:
        self._threads = threads
        self._say = say
        self._receivers = [
            (notice, Receiver(_called(notice), _sender(notice, _PATIENCE), threads, say)) for notice in people.notices
        ]
        self._reviewers: dict[str, Send] = {}  # by name, once they are asked: the host's roots take 20 ms to read

    def asked(self, card: Mapping[str, object], text: str, task: str) -> None:
        """Tell everybody of a question of a task's. Never waits."""
        for notice, receiver in self._receivers:
            receiver.put(_body(notice.shape, card, text), task)

    async def review(self, reviewer: "Reviewer", card: Mapping[str, object], task: str) -> Reviewed:
        """Ask a program, within its bound; whatever goes wrong leaves it to people."""
        body = _generic("approval.review", card)
        try:
            if (send := self._reviewers.get(reviewer.name)) is None:
                send = self._reviewers[reviewer.name] = _sender(reviewer, reviewer.timeout)
            said = await self._threads.ask(send, body, task)
            return _reviewed(said)
        except Failed as failure:
            self._say(f"reviewer {reviewer.name}: {failure}")
            return Reviewed(Vote.PASS, f"it failed: {failure}")

    def close(self) -> None:
        """Tell nobody any more."""
        for _, receiver in self._receivers:
            receiver.close()


def _called(notice: "Notice") -> str:
    """Return how a receiver is called where it fails: a webhook's path may be all the secret that it has."""
    return f"the notifier `{notice.command[0]}`" if notice.command else "a notifier's webhook"


def _sender(to: "Notice | Reviewer", patience: float) -> Send:
    if to.command:
        return command(to.command, patience)
    return webhook(to.webhook, lambda body: _headers(to.secret, body), patience)


def _headers(secret: "Secret | None", body: bytes) -> dict[str, str]:
    """Return what proves who sent it and when: Standard Webhooks 1.0. Raises Failed."""
    own = f"msg_{hashlib.sha256(body).hexdigest()[:32]}"
    if secret is None:
        return {"webhook-id": own}
    from proxy.telemetry.sinks import credential
    from proxy.telemetry.sinks.http import signed
    from proxy.telemetry.sinks.sink import Unavailable

    try:
        key = credential.read(Path(secret.file)) if secret.file else os.environ.get(secret.env, "")
        return {"webhook-id": own, **signed(key, own, int(time.time()), body)}
    except Unavailable as error:
        raise Failed(str(error)) from error


def _body(shape: str, card: Mapping[str, object], text: str) -> bytes:
    if shape == "slack":
        shown = "\n".join(map(visible, text.split("\n")))
        return json.dumps({"text": f"```{shown.translate(_MARKUP).replace('`', chr(0x2019))}```"}).encode()
    return _generic("approval.asked", card)


def _generic(kind: str, card: Mapping[str, object]) -> bytes:
    return json.dumps({"type": kind, "card": card}, ensure_ascii=True).encode()


def _reviewed(data: bytes) -> Reviewed:
    """Read an answer. Raises Failed for what is none."""
    try:
        said = strict_json.loads(data)
        vote, why = _ANSWERS[said["answer"]], said.get("why", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Failed('its answer is not {"answer": "approve", "reject" or "pass", "why": text}') from None
    return Reviewed(vote, str(why)[:_LONGEST])
