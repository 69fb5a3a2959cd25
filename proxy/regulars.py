"""Connections whose likes have passed before: the same words, to the same place, under the same rules.

Compiled code (`compiled/regulars.c`) accepts, compares what a program says first with what was read before
(`greetings`), dials and passes on; all that lets out is here, and is asked for each connection: whether the same policy
is in force on the same day, whether the address still stands for the name, whether the name still leads to where it
led, whether there is room. Then it is told, and only then dialled. What isn't as it was goes the way of all others,
with nothing consumed. Those that follow close behind are let out unasked (`unasked`).
"""

import socket
import time
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from proxy.account import Account
from proxy.compiled.lane import GREETED, OVER, STAYS, Lane, destination
from proxy.deciding import Patience
from proxy.dialling.connecting import DialFailed
from proxy.poller import COMPILED
from proxy.regular import NS, Regular
from proxy.relay import reset
from proxy.unasked import Unasked, Vouched
from rules.addresses import normal
from rules.verdicts import Trust

if TYPE_CHECKING:
    from datetime import date

    from proxy.compiled.lane import News
    from proxy.deciding import Judgement, Wanted
    from proxy.dialling.connecting import Hop
    from proxy.gate import Gate
    from proxy.telemetry.form import Form
    from rules.addresses import Address
    from rules.policy import Policy

MOST_USUAL: Final = 256  # of one tenant; then all is learned anew
MOST_SILENT: Final = 256  # who comes then isn't waited for here
_ROOM_FOR: Final = 8
_MET_AFTER: Final = 0.5  # seconds: who was let out unasked and is still here is one like any other
_GOOD_FOR: Final = 0.25  # seconds: what ages may be as much older, a lookup or the name of an address
_GROWING: Final = 256  # in one round, which the others of a worker wait for
_FRESH_FOR: Final = 0.05  # seconds: after so many it is looked at when one is asked for
_KIND: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)  # a plain number: a socket reads enumerations slowly


class Usual:
    """What was decided of all that greet so, and where they were let out to: one address."""

    __slots__ = (
        "family",
        "form",
        "good_until",
        "hops",
        "judgement",
        "names_then",
        "there",
        "vouched",
        "wanted",
        "written",
    )

    def __init__(self, account: Account, judgement: "Judgement", form: "Form", hop: "Address") -> None:
        self.wanted = account.wanted
        self.judgement = judgement
        self.form = form
        self.hops = (hop,)
        self.written = account.address  # the hop, as it is told
        self.family = _family(hop)
        self.there = destination(self.family, self.wanted.port, hop.packed)  # the hop as connect(2) takes it
        self.good_until = 0.0  # time.monotonic(): longer than that, what was looked at last isn't relied on
        self.names_then = -1  # NameTable.changes when it was
        self.vouched = Vouched()


class Regulars:
    """Those of one gate. For one thread, within a running loop."""

    __slots__ = (
        "_forgetting",
        "_gate",
        "_growing",
        "_known",
        "_lane",
        "_next",
        "_policy",
        "_room",
        "_tainted",
        "_there",
        "_today",
        "_unasked",
        "_usual",
    )

    def __init__(self, gate: "Gate", lane: Lane) -> None:
        self._gate = gate
        self._lane = lane
        self._next = 0
        self._room = 0  # for so many, it is known that there is
        self._growing = 0
        self._usual: dict[int, Usual] = {}
        self._known: set[tuple[Address, int, int]] = set()  # the last: where the hello lies, which `Usual` keeps
        self._there: dict[int, Regular] = {}
        self._forgetting = False
        self._unasked = Unasked(gate, lane, self._is_in_force)
        gate.poller.turns.append(self._unasked)
        self._policy, self._today, self._tainted = _in_force(gate)

    @property
    def silent(self) -> int:
        """How many were accepted and have said nothing so far: nobody else knows of them."""
        return self._lane.silent

    @property
    def unasked(self) -> int:
        """How many were let out unasked, and nobody else knows of so far."""
        return self._unasked.here

    @property
    def is_vouching(self) -> bool:
        """Whether somebody may be let out unasked."""
        return self._unasked.is_vouching

    def hear(self, connections: int = 0) -> None:
        """Go on with all of whom there is news; `connections`: how many the gate has, so many may come at once."""
        while news := self._lane.news(connections):
            # What they were let out by is looked up first: it may be forgotten with the first of them.
            for each, usual in [(each, self._usual.get(each.number)) for each in news]:
                try:
                    self._hear(each, usual)
                except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                    try:
                        self._fail(each, error)
                    except Exception as worse:  # noqa: BLE001 - and nobody else has their news
                        self._gate.failed(worse)

    def meet(self) -> None:
        """Know of those that were let out unasked and stay; once, of as many as the news have room for."""
        self._growing = _GROWING
        before = int((time.monotonic() - _MET_AFTER) / NS)
        self.hear()
        if self._unasked.here:
            self._lane.reveal(before)
            self.hear()

    def learn(self, account: Account, judgement: "Judgement", hop: "Hop") -> None:
        """Take note of a connection that was let out and is connected to `hop`: others like it may follow."""
        hello, wanted = judgement.hello, account.wanted
        if hello is None or (wanted.address, wanted.port, id(hello)) in self._known:
            return
        self._forget_if_stale()
        gate = self._gate
        greeting = gate.recall.greeting_of(hello)
        if greeting is None or isinstance(hop, tuple) or not self._is_simple(wanted, judgement):
            return
        if gate.dialer.known(self._policy, judgement.attempt) != (hop,):
            return  # it may take another one next time
        if len(self._usual) >= MOST_USUAL:
            self.forget()
        form = account.form()
        if form is None:
            return
        number, self._next = self._next, self._next + 1
        place = _family(wanted.address), wanted.port, wanted.address.packed.ljust(16, b"\0")
        if self._lane.learn(place, number, greeting.size, greeting.pieces):
            usual = self._usual[number] = Usual(account, judgement, form, hop)
            self._lane.usual(number, usual.vouched, usual.there, form.pieces)
            self._known.add((wanted.address, wanted.port, id(hello)))

    def forget(self) -> None:
        """Know nobody again: other rules are in force, it is another day, or the task has read something."""
        self._policy, self._today, self._tainted = _in_force(self._gate)
        self._unasked.recall()
        self._forgetting = True
        try:
            while self._lane.forget():
                self.hear()
            self.hear()
        finally:
            self._forgetting = False
            self._usual.clear()
            self._known.clear()

    def close(self) -> None:
        """Accept no more; whoever is there must have been told to go (`abort`). Once."""
        self._lane.close()
        self._gate.poller.turns.remove(self._unasked)

    # for those who are there

    def is_dialled(self, regular: "Regular") -> bool:
        """Whether it is connected."""
        return self._lane.dialled(regular.fd, regular.id) >= 0

    def may_grow(self) -> bool:
        """Whether one more may become like any other in this round."""
        self._growing -= 1
        return self._growing >= 0

    def take(self, regular: "Regular") -> tuple[socket.socket, socket.socket, int, float] | None:
        """Let it be done elsewhere: both its sockets, what compiled code has of it, and the seconds that the dial took.

        Those are negative where that is still under way. None: it is over, and its end will be heard of.
        """
        taken = self._lane.take(regular.fd, regular.id)
        if taken is None:
            return None
        self._there.pop(regular.id, None)
        near = self._gate.accepted(regular.fd)
        far = socket.socket(regular.usual.family, _KIND, 0, taken.far)
        return near, far, taken.pair, taken.dialled * NS

    def _hear(self, news: "News", usual: Usual | None) -> None:
        if any(news.event):
            self._there[news.id] = self._met(news, usual)
        if news.what == OVER:
            regular = self._there.pop(news.id, None)
            if regular is not None:
                regular.over(news)
        elif news.what == STAYS:
            self._gate.keep(self._there[news.id])
        elif news.what == GREETED and (regular := self._there.pop(news.id, None)) is not None:
            reset(self._given(news))
            regular.not_dialled(news.error)
        elif news.what == GREETED and (usual := self._usual_of(news)) is not None:
            self._welcome(news, usual)
        else:
            self._gate.receive(self._given(news), _peer(news), news.opened * NS)

    def _met(self, news: "News", usual: Usual | None) -> Regular:
        """Know of one that was let out unasked."""
        assert usual is not None, "nobody is let out by what is forgotten"
        gate = self._gate
        account = Account(gate.recorder, _peer(news), usual.wanted, usual.written, news.opened * NS)
        account.resume(usual.judgement, usual.form, news.event.decode("ascii"))
        return Regular(gate, self, account, usual, news)

    def _fail(self, news: "News", error: Exception) -> None:
        """End one after an exception that nobody expected."""
        regular = self._there.get(news.id)
        if news.what == GREETED and not self._lane.give(news.fd, news.id):  # nothing has been dialled
            reset(self._gate.accepted(news.fd))
            self._there.pop(news.id, None)
            if regular is not None:
                regular.broke(error)
                return
        elif regular is not None:
            regular.failed(error)
            return
        elif news.what == STAYS and (taken := self._lane.take(news.fd, news.id)) is not None:
            assert COMPILED is not None
            COMPILED.release(taken.pair)
            for each in (self._gate.accepted(news.fd), socket.socket(fileno=taken.far)):
                reset(each)
        self._gate.failed(error)

    def _given(self, news: "News") -> socket.socket:
        """Return the socket of one that is ours alone now."""
        if news.what == GREETED:
            self._lane.give(news.fd, news.id)
        return self._gate.accepted(news.fd)

    def _usual_of(self, news: "News") -> Usual | None:
        """Return how one goes on that is known; None: as any other, from the beginning."""
        self._forget_if_stale()
        usual = self._usual.get(news.number)
        gate = self._gate
        if usual is None or self._forgetting or not self._has_room():
            return None
        now = time.monotonic()
        if now >= usual.good_until - _GOOD_FOR + _FRESH_FOR or usual.names_then != gate.names.changes:
            if not self._leads_there(usual):
                return None
            usual.good_until, usual.names_then = now + _GOOD_FOR, gate.names.changes
        return usual

    def _has_room(self) -> bool:
        """Whether there may be one more. Whether others want the room is asked for a few at once."""
        gate = self._gate
        if gate.is_full:
            return False
        if not self._room:
            if not gate.has_room():
                return False
            self._room = _ROOM_FOR
        self._room -= 1
        return True

    def _leads_there(self, usual: Usual) -> bool:
        """Whether the address stands for the names that it stood for, and what the name leads to is what it was."""
        gate = self._gate
        if gate.names.names_of(usual.wanted.address) != usual.wanted.names:
            return False
        try:
            return gate.dialer.known(self._policy, usual.judgement.attempt) == usual.hops
        except DialFailed:
            return False

    def _welcome(self, news: "News", usual: Usual) -> None:
        """Tell what was decided, and dial."""
        gate = self._gate
        heard = time.monotonic()
        account = Account(gate.recorder, _peer(news), usual.wanted, usual.written, news.opened * NS)
        whose = gate.attribute(account, again=True)
        metrics = gate.recorder.metrics
        metrics.peek_seconds.observe(heard - account.opened)
        metrics.decision_seconds.observe(time.monotonic() - heard)
        if not account.decided_alike(usual.judgement, usual.form):
            reset(self._given(news))
            return
        regular = self._there[news.id] = Regular(gate, self, account, usual, news)
        gate.keep(regular)
        if number := self._lane.dial(news.fd, news.id, usual.there, len(usual.there)):
            del self._there[news.id]
            reset(self._given(news))
            regular.not_dialled(number)
        elif whose is None or whose.is_last:  # else the next one is asked about too
            self._unasked.vouch(usual)

    def _is_simple(self, wanted: "Wanted", judgement: "Judgement") -> bool:
        """Whether there is nothing to it but what is looked at here."""
        decision = judgement.decision
        return (
            decision.lets_out
            and decision.trust is Trust.TRUSTED
            and not decision.limits
            and not judgement.grants
            and bool(wanted.names)
            and self._gate.recall.patience(wanted) is Patience.FULL
        )

    def _forget_if_stale(self) -> None:
        if not self._is_in_force():
            self.forget()

    def _is_in_force(self) -> bool:
        """Whether the same policy is in force on the same day, and the task is as it was."""
        tenant = self._gate.tenant
        return (
            tenant.policy is self._policy and tenant.calendar.today() is self._today and tenant.tainted is self._tainted
        )


def regulars_of(gate: "Gate", listener: int) -> Regulars | None:
    """Have compiled code accept for a gate; None: there is none."""
    if COMPILED is None:
        return None
    poller, backlog = gate.poller, gate.backlog
    # In a set that others look into, nobody would come back to those that stay silent.
    most_silent = MOST_SILENT if poller.is_alone else 0
    return Regulars(gate, Lane(COMPILED.library, poller.number, listener, most_silent, backlog.address, backlog.most))


def _in_force(gate: "Gate") -> "tuple[Policy, date, bool]":
    """Return what a decision hangs on beside the connection: no two that are alike are different objects."""
    tenant = gate.tenant
    return tenant.policy, tenant.calendar.today(), tenant.tainted


def _family(address: "Address") -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


def _peer(news: "News") -> "tuple[Address, int]":
    return _address(news.family, news.address), news.port


@lru_cache(maxsize=64)
def _address(family: int, packed: bytes) -> "Address":
    return normal(ip_address(packed[:4] if family == socket.AF_INET else packed))
