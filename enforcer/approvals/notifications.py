"""Notifications and reviews: what receivers of approvers.yaml are sent of a request, and what they answer.

A receiver that is slow or down delays nobody: it is retried ever more rarely, and its failure is reported once, until
it works again. Requests of one task take no place and no time of another's (invariant 11). A card's texts are a task's:
markup is escaped, and so are control characters (invariant 7). A program's failure is a pass to people.
"""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from proxy.approvals.model import Vote
from proxy.telemetry.visible import visible
from proxy.wire import strict_json

if TYPE_CHECKING:
    from proxy.approvals.people import NotificationTarget, People, Reviewer, Secret
    from proxy.telemetry.exporters.http import Endpoint

MOST_WAITING: Final = 256  # notices for one receiver; the oldest go first, of the task that has the most
TRIES: Final = 6
_FIRST_REST, _LONGEST_REST = 1.0, 60.0  # seconds
_LARGEST_ANSWER: Final = 1 << 16  # bytes
_LONGEST_REASON: Final = 200  # characters
_THREADS: Final = 16
_OF_ONE: Final = 4  # reviews of one task's questions at once
_VARIABLES: Final = ("HOME", "LANG", "LC_ALL", "PATH", "TZ", "USER", "LOGNAME", "XDG_RUNTIME_DIR")

type Send = Callable[[bytes], bytes]  # runs in a thread. Raises DeliveryError


class DeliveryError(Exception):
    """A receiver did not accept a notification. `again`: whether to retry."""

    def __init__(self, why: str, *, again: bool = True) -> None:
        super().__init__(why[:_LONGEST_REASON])
        self.again = again


class Threads:
    """Where what may take long is waited for. In the registry's loop."""

    def __init__(self) -> None:
        self._telling = ThreadPoolExecutor(_THREADS, "telling")
        self._asking = ThreadPoolExecutor(_THREADS, "asking")  # programs that review may take two minutes
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # by whose questions they are

    def tell(self, send: Send, body: bytes) -> Awaitable[bytes]:
        """Have it sent. Raises DeliveryError."""
        return asyncio.get_running_loop().run_in_executor(self._telling, send, body)

    async def ask(self, send: Send, body: bytes, task: str) -> bytes:
        """Have it sent, and return the answer. Raises DeliveryError."""
        turn = self._turns.get(task)
        if turn is None:
            turn = self._turns[task] = asyncio.Semaphore(_OF_ONE)
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._asking, send, body)

    def close(self) -> None:
        """Wait for nothing that is under way."""
        for pool in (self._telling, self._asking):
            pool.shutdown(wait=False, cancel_futures=True)


class Receiver:
    """One receiver's queues, one for each task. `say` is told what an admin should know."""

    def __init__(self, name: str, send: Send, threads: Threads, say: Callable[[str], None]) -> None:
        self.name = name
        self._send = send
        self._threads = threads
        self._say = say
        self._waiting: dict[str, deque[bytes]] = {}  # by task
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._failing = False

    def put(self, body: bytes, task: str) -> None:
        """Have it sent when it is its turn."""
        if sum(map(len, self._waiting.values())) >= MOST_WAITING:
            self._complain("too much waits for it; the oldest notices are lost")
            max(self._waiting.values(), key=len).popleft()
        if (waiting := self._waiting.get(task)) is not None:
            waiting.append(body)
            return
        waiting = self._waiting[task] = deque([body])
        delivering = asyncio.get_running_loop().create_task(self._deliver(task, waiting))
        self._tasks.add(delivering)
        delivering.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Send no more."""
        for task in self._tasks:
            task.cancel()

    async def _deliver(self, task: str, waiting: deque[bytes]) -> None:
        """Send what waits of one task. While that rests, the others' is sent."""
        while waiting:
            body = waiting.popleft()
            rest = _FIRST_REST
            for left in range(TRIES - 1, -1, -1):
                try:
                    async with self._turn:
                        await self._threads.tell(self._send, body)
                except DeliveryError as failure:
                    self._complain(str(failure))
                    if not left or not failure.again:
                        break
                    await asyncio.sleep(rest)
                    rest = min(rest * 2, _LONGEST_REST)
                else:
                    if self._failing:
                        self._failing = False
                        self._say(f"{self.name} works again")
                    break
        del self._waiting[task]

    def _complain(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            self._say(f"{self.name}: {why}")


def command(argv: Sequence[str], patience: float) -> Send:
    """Return what has a program read it from its standard input, without a shell; its standard output is the answer."""

    def send(body: bytes) -> bytes:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as answer:
            given.write(body)
            given.seek(0)
            try:
                process = subprocess.Popen(
                    list(argv),
                    stdin=given,
                    stdout=answer,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
                    start_new_session=True,
                )
            except OSError as error:
                raise DeliveryError(f"`{argv[0]}` cannot be run: {error.strerror}") from error
            try:
                status = process.wait(patience)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait()
                raise DeliveryError(f"`{argv[0]}` took longer than {patience:g} seconds") from None
            if status:
                raise DeliveryError(f"`{argv[0]}` ended with status {status}")
            answer.seek(0)
            return answer.read(_LARGEST_ANSWER)

    return send


def webhook(url: str, headers: Callable[[bytes], Mapping[str, str]], patience: float) -> Send:
    """Return what posts it to a URL, https or http; the response's body is the answer."""
    from proxy.telemetry.exporters.exporter import RefusedError, UnavailableError
    from proxy.telemetry.exporters.http import HttpPoster

    poster = HttpPoster(_place(url), timeout=patience)

    def send(body: bytes) -> bytes:
        try:
            return poster.post(body, {"Content-Type": "application/json", **headers(body)})
        except RefusedError as refused:
            raise DeliveryError(str(refused), again=False) from refused
        except UnavailableError as error:
            raise DeliveryError(str(error)) from error

    return send


def _place(url: str) -> "Endpoint":
    from proxy.telemetry.exporters.exporter import TlsTrust
    from proxy.telemetry.exporters.http import Endpoint

    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("this is no URL of a webhook")
    tls = TlsTrust() if parts.scheme == "https" else None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(parts.hostname, parts.port or (443 if tls else 80), path, tls)


_PATIENCE: Final = 10.0  # seconds for one that is only told
_LONGEST: Final = 500  # characters of what a program says
_ANSWERS: Final = {"approve": Vote.APPROVE, "reject": Vote.REJECT, "pass": Vote.PASS}
_MARKUP: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # api.slack.com/reference/surfaces/formatting


class ReviewAnswer(NamedTuple):
    """Answer of a reviewer."""

    vote: Vote
    why: str


class Notifications:
    """Receivers and reviewers of approvers.yaml; made anew when it changes. `say` receives log lines."""

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

    async def review(self, reviewer: "Reviewer", card: Mapping[str, object], task: str) -> ReviewAnswer:
        """Ask a program, within its bound; whatever goes wrong leaves it to people."""
        body = _generic("approval.review", card)
        try:
            if (send := self._reviewers.get(reviewer.name)) is None:
                send = self._reviewers[reviewer.name] = _sender(reviewer, reviewer.timeout)
            said = await self._threads.ask(send, body, task)
            return _reviewed(said)
        except DeliveryError as failure:
            self._say(f"reviewer {reviewer.name}: {failure}")
            return ReviewAnswer(Vote.PASS, f"it failed: {failure}")

    def close(self) -> None:
        """Tell nobody any more."""
        for _, receiver in self._receivers:
            receiver.close()


def _called(notice: "NotificationTarget") -> str:
    """Return how a receiver is called where it fails: a webhook's path may be all the secret that it has."""
    return f"the notifier `{notice.command[0]}`" if notice.command else "a notifier's webhook"


def _sender(to: "NotificationTarget | Reviewer", patience: float) -> Send:
    if to.command:
        return command(to.command, patience)
    return webhook(to.webhook, lambda body: _headers(to.secret, body), patience)


def _headers(secret: "Secret | None", body: bytes) -> dict[str, str]:
    """Return what proves who sent it and when: Standard Webhooks 1.0. Raises DeliveryError."""
    own = f"msg_{hashlib.sha256(body).hexdigest()[:32]}"
    if secret is None:
        return {"webhook-id": own}
    from proxy.telemetry.exporters.exporter import UnavailableError, read_secret
    from proxy.telemetry.exporters.http import signature_headers

    try:
        key = read_secret(Path(secret.file)) if secret.file else os.environ.get(secret.env, "")
        return {"webhook-id": own, **signature_headers(key, own, int(time.time()), body)}
    except UnavailableError as error:
        raise DeliveryError(str(error)) from error


def _body(shape: str, card: Mapping[str, object], text: str) -> bytes:
    if shape == "slack":
        shown = "\n".join(map(visible, text.split("\n")))
        return json.dumps({"text": f"```{shown.translate(_MARKUP).replace('`', chr(0x2019))}```"}).encode()
    return _generic("approval.asked", card)


def _generic(kind: str, card: Mapping[str, object]) -> bytes:
    return json.dumps({"type": kind, "card": card}, ensure_ascii=True).encode()


def _reviewed(data: bytes) -> ReviewAnswer:
    try:
        said = strict_json.loads(data)
        vote, why = _ANSWERS[said["answer"]], said.get("why", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DeliveryError('its answer is not {"answer": "approve", "reject" or "pass", "why": text}') from None
    return ReviewAnswer(vote, str(why)[:_LONGEST])
