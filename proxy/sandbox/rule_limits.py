"""Counts usage against each rule's `limits:`, and checks it before bytes or requests are forwarded.

One sandbox's (invariant 11), so `per: task` and `per: sandbox` are the same here, and `per: rule` is all that goes
through this gate. Counts belong to a rule's id: a reload that keeps the rule keeps them. A window slides, in steps that
count too much rather than too little, and no piece of a transfer goes beyond a limit: it is cut instead.
"""

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from proxy.approvals.leases import Budget, Grant
    from rules.decision import Decision, Limits

_STEPS: Final = 16  # that a window is counted in
_FIELDS: Final = ("connections", "requests", "bytes_up", "bytes_down")


class Exceeded(NamedTuple):
    """The limit that is used up, and its rule."""

    rule: str
    field: str
    limit: int

    def __str__(self) -> str:
        what = self.field.replace("_", " ")
        if self.limit == 1:
            what = {"requests": "request", "connections": "connection"}.get(what, what.replace("bytes", "byte"))
        return f"`{self.rule}` allows {self.limit} {what}, and that is used up"


class _Count:
    """Usage in total, or within the last `window` seconds."""

    __slots__ = ("_step", "_steps", "_total", "_width")

    def __init__(self, window: float | None) -> None:
        self._width = None if window is None else window / _STEPS  # seconds
        self._steps: dict[int, int] = {}
        self._step = 0
        self._total = 0

    def total(self, now: float) -> int:
        if self._width is not None and (step := int(now / self._width)) != self._step:
            self._step = step
            for old in [known for known in self._steps if known < step - _STEPS]:
                self._total -= self._steps.pop(old)
        return self._total

    def add(self, amount: int, now: float) -> None:
        self.total(now)
        self._total += amount
        if self._width is not None:
            self._steps[self._step] = self._steps.get(self._step, 0) + amount


class _Usage:
    """Usage of one rule."""

    __slots__ = ("_counts", "cuts", "limits", "open")

    def __init__(self, limits: "Limits") -> None:
        self.limits = limits
        self.open = 0  # connections
        self.cuts = 0  # how often a transfer was to go beyond
        self._counts = {field: _Count(limits.window) for field in _FIELDS}

    def be_under(self, limits: "Limits") -> None:
        """Set the limits after a reload. A new window starts counting from zero."""
        if limits.window != self.limits.window:
            self._counts = {field: _Count(limits.window) for field in _FIELDS}
        self.limits = limits

    def used(self, field: str, now: float) -> int:
        """Return the usage of a limit; without a window, connections are those open now."""
        if field == "connections" and self.limits.window is None:
            return self.open
        return self._counts[field].total(now)

    def limit(self, field: str) -> int | None:
        limit: int | None = getattr(self.limits, field)
        return limit

    def has_room(self, field: str, amount: int, now: float) -> bool:
        limit = self.limit(field)
        return limit is None or self.used(field, now) + amount <= limit

    def add(self, field: str, amount: int, now: float) -> None:
        self._counts[field].add(amount, now)


class Meter:
    """Meter of one connection or request under limits and grants; called before bytes are forwarded."""

    __slots__ = ("_clock", "_cuts", "_usages", "budgets", "exceeded")

    def __init__(
        self, usages: "dict[str, _Usage]", clock: "Callable[[], float]", budgets: "tuple[Budget, ...]" = ()
    ) -> None:
        self.budgets = budgets
        self._usages = usages
        self._clock = clock
        self._cuts = {rule: usage.cuts for rule, usage in usages.items()}
        self.exceeded: Exceeded | None = None  # set once, and for good: nothing more may pass

    def up(self, size: int) -> bool:
        """Whether `size` bytes may be sent; if so, they are counted."""
        return self._take("bytes_up", size)

    def down(self, size: int) -> bool:
        """Whether `size` bytes may be received; if so, they are counted."""
        return self._take("bytes_down", size)

    def rule_over(self) -> str | None:
        """Return the rule whose limit was exceeded, so that the connection must end."""
        if self.exceeded is not None:
            return self.exceeded.rule
        if self.budgets and (over := next((budget.rule for budget in self.budgets if budget.over), None)):
            return over
        return next((rule for rule, usage in self._usages.items() if usage.cuts != self._cuts[rule]), None)

    def is_under(self, usages: "dict[str, _Usage]") -> bool:
        """Whether it counts against these; a stopped meter stays so."""
        return self.exceeded is not None or self._usages == usages

    def _take(self, field: str, size: int) -> bool:
        if self.exceeded is not None:
            return False
        now = self._clock()
        self.exceeded = _first(self._usages, (field,), size, now)
        if self.exceeded is not None:
            self._usages[self.exceeded.rule].cuts += 1
            return False
        for budget in self.budgets:
            if not budget.take(size):
                self.exceeded = _spent(budget)
                return False
        for usage in self._usages.values():
            usage.add(field, size, now)
        return True


class Connections:
    """Rules that one connection counts as open against, each once."""

    __slots__ = ("_usages",)

    def __init__(self) -> None:
        self._usages: dict[str, _Usage] = {}

    def new(self, usages: "dict[str, _Usage]") -> "dict[str, _Usage]":
        """Return the rules that this connection doesn't count against yet."""
        return {rule: usage for rule, usage in usages.items() if rule not in self._usages}

    def open(self, usages: "dict[str, _Usage]", now: float) -> None:
        """Count it as open under these rules, too."""
        for rule, usage in self.new(usages).items():
            usage.open += 1
            usage.add("connections", 1, now)
            self._usages[rule] = usage

    def close(self) -> None:
        """Count it as closed. Idempotent."""
        while self._usages:
            _, usage = self._usages.popitem()
            usage.open -= 1


class Meters:
    """Usage of the limits of all rules in one sandbox."""

    def __init__(self, clock: "Callable[[], float]" = time.monotonic) -> None:
        self._clock = clock
        self._usages: dict[str, _Usage] = {}

    def admit(
        self,
        limits: "Iterable[tuple[str, Limits]]",
        connection: Connections,
        size: int = 0,
        budgets: "tuple[Budget, ...]" = (),
    ) -> "Meter | Exceeded":
        """Count one attempt on `connection`, whose head has `size` bytes, against the limits of the rules it matches.

        What is not read counts as one request. Counts nothing when one of them is used up. `budgets` are those of the
        grants that it passes under.
        """
        now = self._clock()
        usages = {rule: self._usage(rule, each) for rule, each in limits}
        over = _first(connection.new(usages), ("connections",), 1, now) or _first(usages, ("requests",), 1, now)
        over = over or _first(usages, ("bytes_up",), max(size, 1), now) or _first(usages, ("bytes_down",), 1, now)
        if over is not None:
            return over
        for budget in budgets:
            if budget.is_empty or not budget.take(size):
                return _spent(budget)
        connection.open(usages, now)
        for usage in usages.values():
            usage.add("requests", 1, now)
            usage.add("bytes_up", size, now)
        return Meter(usages, self._clock, budgets)

    def apply_limits(
        self, limits: "Iterable[tuple[str, Limits]]", connection: Connections, meter: Meter | None
    ) -> "Meter | Exceeded | None":
        """Count a connection or request under way against the limits now in force; None: there are none.

        Only rules that it wasn't counted against before count it as a new connection. Limits on the number of requests
        and connections don't end it; a used-up limit on bytes does.
        """
        now = self._clock()
        usages = {rule: self._usage(rule, each) for rule, each in limits}
        over = _first(usages, ("bytes_up", "bytes_down"), 0, now)
        if over is not None:
            return over
        connection.open(usages, now)
        if meter is not None and meter.is_under(usages):
            return meter
        kept = () if meter is None else meter.budgets
        return Meter(usages, self._clock, kept) if usages or kept else None

    def used(self) -> dict[tuple[str, str], float]:
        """Return the used share of each limit, 0 to 1, by rule and field."""
        now = self._clock()
        return {
            (rule, field): min(usage.used(field, now) / limit, 1.0) if limit else 1.0
            for rule, usage in self._usages.items()
            for field in _FIELDS
            if (limit := usage.limit(field)) is not None
        }

    def keep(self, rules: "Collection[str]") -> None:
        """Drop the counts of rules that no longer exist."""
        self._usages = {rule: usage for rule, usage in self._usages.items() if usage.open or rule in rules}

    def _usage(self, rule: str, limits: "Limits") -> _Usage:
        known = self._usages.get(rule)
        if known is None:
            known = self._usages[rule] = _Usage(limits)
        elif known.limits != limits:
            known.be_under(limits)
        return known


class Quota:
    """Limits of one uninspected connection or flow: begun once, changed by reloads, ended."""

    __slots__ = ("_counted", "_meters", "meter")

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._counted: Connections | None = None
        self.meter: Meter | None = None  # where its rules have limits

    def begin(self, limits: "tuple[tuple[str, Limits], ...]", budgets: "tuple[Budget, ...]" = ()) -> Exceeded | None:
        """Count it against the limits of its rules; returns the exceeded limit, and then counts nothing."""
        if not limits and not budgets:
            return None
        counted = Connections()
        found = self._meters.admit(limits, counted, budgets=budgets)
        if isinstance(found, Exceeded):
            return found
        self._counted, self.meter = counted, found
        return None

    def apply_limits(self, limits: "tuple[tuple[str, Limits], ...]") -> Exceeded | None:
        """Apply the limits now in force; returns the exceeded limit, which ends it."""
        if not limits and self._counted is None:
            return None
        self._counted = self._counted or Connections()
        found = self._meters.apply_limits(limits, self._counted, self.meter)
        if isinstance(found, Exceeded):
            return found
        self.meter = found
        return None

    def rule_over(self) -> str | None:
        """Return the rule whose limit was exceeded; None: it may continue."""
        return None if self.meter is None else self.meter.rule_over()

    def end(self) -> None:
        """Count it as closed. Idempotent."""
        if self._counted is not None:
            self._counted.close()


def exceeded(decision: "Decision", over: Exceeded) -> "Decision":
    """Return the denial for a used-up limit."""
    return cut_by(decision, over.rule)


def cut_by(decision: "Decision", rule: str | None) -> "Decision":
    """Return the decision that ends an allowed connection: the limit of `rule` is used up."""
    rules = () if rule is None else (rule,)
    return decision._replace(
        verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=Reason.LIMIT_EXCEEDED, rules=rules, nearest=None
    )


def budgets(grants: "tuple[Grant, ...]") -> "tuple[Budget, ...]":
    """Return the byte budgets of grants."""
    if not grants:  # as nearly always
        return ()
    return tuple(grant.budget for grant in grants if grant.budget is not None)


def _spent(budget: "Budget") -> Exceeded:
    return Exceeded(budget.rule, "bytes", budget.granted)


def _first(usages: "dict[str, _Usage]", fields: tuple[str, ...], amount: int, now: float) -> Exceeded | None:
    """Return the first limit that `amount` more would exceed."""
    for rule, usage in usages.items():
        for field in fields:
            if not usage.has_room(field, amount, now):
                return Exceeded(rule, field, usage.limit(field) or 0)
    return None
