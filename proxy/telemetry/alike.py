"""Telling of connections that are alike, in one form (`form`): as any other, with less to do.

Some are told by compiled code (`compiled/telling.c`), into the same journal. It counts them in `Counted`, which is
taken over (`take_over`) before anything of Python's runs.
"""

import contextlib
import ctypes
import time
from typing import TYPE_CHECKING, Final, cast

from proxy.telemetry.events import Kind
from proxy.telemetry.form import Form
from proxy.telemetry.inside import Inside
from proxy.telemetry.journal.writing import JournalFailed
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from proxy.telemetry.ids import IdMaker
    from proxy.telemetry.journal.writing import Journal
    from proxy.telemetry.metrics import Histogram, Metrics
    from proxy.telemetry.recorder import Recorder
    from rules.decision import Decision
    from rules.verdicts import Outcome

_NS: Final = 1_000_000_000  # a second
_Numbers = ctypes.POINTER(ctypes.c_int64)


class _Observed(ctypes.Structure):
    """What has been observed since it was last taken over (struct histogram)."""

    _fields_ = (
        ("bounds", _Numbers),  # ns
        ("counts", _Numbers),
        ("bounded", ctypes.c_int64),
        ("total", ctypes.c_int64),  # ns
    )

    @classmethod
    def between(cls, bounds: "Iterable[float]") -> "Self":
        limits = [round(bound * _NS) for bound in bounds]
        numbers = ctypes.c_int64 * len(limits)
        return cls(numbers(*limits), (ctypes.c_int64 * (len(limits) + 1))(), len(limits), 0)

    def take_over(self, histogram: "Histogram") -> None:
        for each in range(self.bounded + 1):
            histogram.counts[each] += self.counts[each]
            self.counts[each] = 0
        histogram.total += self.total / _NS
        self.total: int = 0


class Counted(ctypes.Structure):
    """What compiled code has counted of one gate's connections, and how many it may have (struct counted)."""

    _fields_ = (
        ("in_force", ctypes.c_int64),  # whether what was vouched for may be let out
        ("most", ctypes.c_int64),  # connections that may be there unasked
        ("unasked", ctypes.c_int64),  # that are
        ("decided", ctypes.c_int64),
        ("closed", ctypes.c_int64),
        ("bytes", ctypes.c_int64),  # in the journal
        ("up", ctypes.c_int64),
        ("down", ctypes.c_int64),
        ("peek", _Observed),
        ("decision", _Observed),
        ("dial", _Observed),
        ("connection", _Observed),
    )

    @classmethod
    def of(cls, metrics: "Metrics") -> "Self":
        """Return one that is taken over by `metrics`."""
        new = cls()
        new.peek = _Observed.between(metrics.peek_seconds.bounds)
        new.decision = _Observed.between(metrics.decision_seconds.bounds)
        new.dial = _Observed.between(metrics.dial_histogram().bounds)
        new.connection = _Observed.between(metrics.connection_seconds.bounds)
        return new


class Alike(Inside):
    """The part of a `Recorder` that is about connections like others before them."""

    __slots__ = ()

    if TYPE_CHECKING:
        journal: Journal
        _open: dict[str, Outcome]
        _ids: IdMaker

        def _claim(self) -> None: ...
        def _append(self, line: bytes, now: int, kind: Kind) -> None: ...
        def _count_lost(self, kind: Kind, name: str | None, address: object) -> None: ...
        def _count_told(self, kind: Kind, length: int, times: int = 1) -> None: ...
        def _count_end(self, up: int, down: int, seconds: float) -> None: ...

    def form(self, tell: "Callable[[Recorder], None]", decision: "Decision", name: str | None, address: object) -> Form:
        """Return the form of a decision and an end, which `tell` tells a recorder of this task's. Raises ValueError."""
        from proxy.telemetry.metrics import Metrics

        lines: list[bytes] = []
        tell(type(cast("Recorder", self))(self.tenant, cast("Journal", _Kept(lines)), Metrics()))
        return Form.of(decision, name, address, lines)

    def decided_alike(self, form: Form) -> str:
        """Do as `decided`, for a connection that is let out and of which there is no more to tell than the form has."""
        now = time.time_ns()
        own = self._ids.make(now)
        kind = Kind.CONNECTION_DECIDED
        try:
            self._claim()
            self._append(form.decided(now, own), now, kind)
        except JournalFailed:
            self._count_lost(kind, form.name, form.address)
            raise
        self._count_alike(form, 1)
        self._open[own] = form.decision.outcome
        self.metrics.connections_open += 1
        return own

    def closed_alike(self, form: Form, cause: str, up: int, down: int, seconds: float) -> None:
        """Do as `closed`, for a connection that was told so and ended by itself. Never raises."""
        if self._open.pop(cause, None) is None:
            return
        self._count_end(up, down, seconds)
        now = time.time_ns()
        line = form.closed(now, self._ids.make(now), cause, (up, down), seconds)
        with contextlib.suppress(JournalFailed):  # it is counted
            self._append(line, now, Kind.CONNECTION_CLOSED)

    # what compiled code tells

    @property
    def last_id(self) -> ctypes.c_int64:
        """The instant of the last id: whoever else makes some has to make greater ones."""
        return self._ids.last

    def resume(self, form: Form, event: str) -> None:
        """Go on with a connection that compiled code has told, under an id, and counted: its end is told here."""
        self._open[event] = form.decision.outcome

    def take_over(self, counted: Counted, forms: "Iterable[tuple[Form, int]]") -> None:
        """Count what compiled code has told; `forms`: how many decisions of each were."""
        metrics = self.metrics
        for form, times in forms:
            self._count_alike(form, times)
        self._count_told(Kind.CONNECTION_DECIDED, counted.bytes, counted.decided)
        if counted.closed:
            self._count_told(Kind.CONNECTION_CLOSED, 0, counted.closed)
        metrics.connections_open += counted.decided - counted.closed
        metrics.bytes_up += counted.up
        metrics.bytes_down += counted.down
        counted.decided = counted.closed = counted.bytes = counted.up = counted.down = 0
        counted.peek.take_over(metrics.peek_seconds)
        counted.decision.take_over(metrics.decision_seconds)
        counted.dial.take_over(metrics.connected_seconds())
        counted.connection.take_over(metrics.connection_seconds)

    def _count_alike(self, form: Form, times: int) -> None:
        decision, metrics = form.decision, self.metrics
        metrics.decisions[form.key] = metrics.decisions.get(form.key, 0) + times
        self._tally.decided(Kind.CONNECTION_DECIDED, decision.outcome, form.name, form.address, times, decision.reason)
        self._tally.flagged += times * (decision.verdict is Verdict.FLAG)
        if decision.rules:
            metrics.rules_decided(decision.rules, decision.verdict, times)


class _Kept:
    """A journal of a few lines, for nobody to read."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines

    def append(self, line: bytes, _now: int) -> int:
        self._lines.append(line)
        return len(line)
