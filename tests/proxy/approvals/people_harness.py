"""People behind a gate: the real registry with a store in a file, at the other end of a real pair of sockets."""

import asyncio
import contextlib
import socket

from proxy.approvals.approval_request import MalformedMessageError
from proxy.approvals.client import ApprovalsClient
from proxy.approvals.model import GrantTerms, Vote
from proxy.approvals.protocol import Introduction, Pending, Tainted, read_worker_message
from proxy.approvals.recording import ApprovalRecorder, origin
from proxy.approvals.registry import Registry
from proxy.approvals.store import SqliteStore
from proxy.approvals.votes import CastVote
from proxy.sandbox.taint import Taint
from proxy.telemetry.events import Origin
from proxy.wire import message
from tests.proxy.approvals.registry_lab import ADA, PEOPLE, STARTER, Journal, ManualClock
from tests.support.waiting import wait_until_async

TASK = "t1"


class People:
    """A registry, the sandbox that it knows, and who answers. Use it in the loop that it was opened in."""

    def __init__(self, directory):
        self.clock = ManualClock()
        self.journal = Journal()
        self.said = []  # words of workers
        self.replies = []
        self.heard = []  # the ids of questions, in the order in which gates took note that they wait
        self.registry = Registry(
            SqliteStore(directory / "approvals.sqlite"), PEOPLE, self._recorder, reply=self._reply,
            clock=self.clock.clock(),
        )  # fmt: skip
        self.mute = False  # hears, and does nothing
        self._channels = []
        self._hearing = []

    def _recorder(self, task):
        return ApprovalRecorder(Origin() if task is None else origin(task), self.journal)

    async def open(self):
        await self.registry.open()
        return await self.pair()

    async def pair(self, task=TASK):
        """Introduce the sandbox, and return its worker's end."""
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._channels += [theirs, ours]
        await self.registry.introduce(ours, Introduction("box", task, "task", {}, STARTER, "host"))
        self._hearing.append(asyncio.get_running_loop().create_task(self._hear(ours)))
        return theirs

    async def _hear(self, channel):
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, MalformedMessageError):
            while data := await loop.sock_recv(channel, 1 << 17):
                word = read_worker_message(message.json.loads(data))
                self.said.append(word)
                if not self.mute:
                    await self.registry.received(channel, word)

    def _reply(self, channel, reply):
        self.replies.append(reply)
        with contextlib.suppress(OSError):
            message.send(channel, reply.packed())

    async def close(self):
        for task in self._hearing:
            task.cancel()
        await asyncio.gather(*self._hearing, return_exceptions=True)
        await self.registry.close()
        for channel in self._channels:
            channel.close()

    def kill(self):
        """End as a registry that is killed."""
        for task in self._hearing:
            task.cancel()
        self._channels[-1].close()

    # what tests look at, and do

    def asked(self):
        """The ids of what people are asked, in the order in which they were, as soon as the gate knows them too."""
        return list(dict.fromkeys(self.heard))

    async def question(self, count=1):
        await wait_until_async(lambda: len(self.asked()) >= count)
        return self.asked()[count - 1]

    def tainted_by(self):
        return [word.source for word in self.said if isinstance(word, Tainted)]

    async def approve(self, id_, *words, uid=ADA):
        who = PEOPLE.by_uid(uid, "host")
        return await self.registry.decide(id_, CastVote(who, Vote.APPROVE, GrantTerms.parse(words), ""))

    async def reject(self, id_, why=""):
        await self.registry.decide(id_, CastVote(PEOPLE.by_uid(ADA, "host"), Vote.REJECT, why=why))

    async def revoke(self, id_):
        await self.registry.revoke(id_, PEOPLE.by_uid(ADA, "host"))

    async def advance(self, seconds):
        self.clock.advance(seconds)
        await self.registry.expire()

    def kinds(self):
        return [event["kind"] for event in self.journal.events]

    def behind(self, recorder, poller, channel, *, review=lambda: None, unsure=False):
        """Have a sandbox ask over `channel`, as its sandbox_server does."""
        sandbox = recorder.sandbox
        sandbox.approvals = asking = _Hearing(self.heard, channel, poller, recorder.error)
        approvals = ApprovalRecorder(recorder.origin, recorder.journal, recorder.metrics)
        sandbox.taint = Taint(sandbox, approvals, recorder.metrics, is_unknown=unsure)
        sandbox.taint.connect(asking)
        sandbox.taint.review = review
        asking.start()
        return asking


class _Hearing(ApprovalsClient):
    """Says which questions it knows to wait: between the registry's word and that lie two processes."""

    def __init__(self, heard, *words):
        super().__init__(*words)
        self._heard = heard

    def _take(self, reply):
        super()._take(reply)
        if isinstance(reply, Pending):
            self._heard.append(reply.approval)
