"""The gates whose questions the registry answers: each introduced by who made its sandbox, each with a pair of its own.

A gate is known by the descriptor that came with its introduction (invariant 4). Its words are taken in their order, one
after the other, and while too many wait no more are read. What doesn't read as one ends the gate: it was taken over.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from enforcer.approvals.lines import Line
from proxy.approvals.protocol import Malformed, read_word

if TYPE_CHECKING:
    from proxy.approvals.protocol import Reply, Word

_MOST_WAITING: Final = 256  # words


class Gate:
    """One gate's pair. `hear` gets its words, and None at its end; `say` is told what an admin should know."""

    def __init__(
        self, end: socket.socket, hear: "Callable[[Word | None], Awaitable[None]]", say: Callable[[str], None]
    ) -> None:
        self._hear = hear
        self._say = say
        self._words: deque[Word | None] = deque()
        self._paused = False
        self._task: asyncio.Task[None] | None = None
        self._line = Line(end, self._heard, lambda _line: self._put(None))

    def reply(self, reply: "Reply") -> None:
        """Tell its worker something."""
        self._line.say(reply.packed())

    def close(self) -> None:
        """Hear no more of it: its sandbox is gone. Idempotent."""
        self._line.close()

    async def ended(self) -> None:
        """Wait until all that was said is seen to."""
        if self._task is not None:
            await self._task

    def _heard(self, _line: Line, said: dict[str, object], _descriptors: list[int]) -> None:
        try:
            word = read_word(said)
        except Malformed as error:
            self._say(f"a gate is not listened to any more: {error}")
            self._line.close()
            return
        self._put(word)

    def _put(self, word: "Word | None") -> None:
        self._words.append(word)
        if len(self._words) >= _MOST_WAITING and not self._paused:
            self._paused = True
            self._line.pause()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._act())

    async def _act(self) -> None:
        while self._words:
            word = self._words.popleft()
            if self._paused and len(self._words) < _MOST_WAITING // 2:
                self._paused = False
                self._line.resume()
            try:
                await self._hear(word)
            except Exception as error:  # noqa: BLE001 - whoever waits for an answer is told that there is none
                self._say(f"a gate is not served any more: {type(error).__name__}: {error}")
                self._line.close()
