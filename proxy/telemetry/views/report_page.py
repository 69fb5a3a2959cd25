"""Report as one HTML page: readable offline, light and dark, with a timeline in SVG and no scripts.

`report.html` is the page. Home of invariant 7 for it: every value that it prints goes through `_shown`, which spells
out what is not visible, and is then escaped; the page forbids itself scripts, and everything that lies elsewhere.
"""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from proxy.telemetry.descriptions import describe
from proxy.telemetry.events import APPROVALS, Kind
from proxy.telemetry.summary import OUTCOME_WORDS
from proxy.telemetry.views.report_data import target
from proxy.telemetry.visible import visible
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.telemetry.events import Event
    from proxy.telemetry.views.report_data import AttemptTimes, DestinationStats, ReportData, Span

_LONGEST: Final = 300  # characters of one text
_OPEN_ROWS: Final = 25  # that are shown without a click
_FROM_THE_BOTTOM_UP: Final = (Outcome.PASSED, Outcome.WOULD_BLOCK, Outcome.FAILED, Outcome.BLOCKED)  # of a bar
_WORDS: Final = {outcome: OUTCOME_WORDS[outcome] for outcome in _FROM_THE_BOTTOM_UP}
_COLUMNS: Final = 120
_WIDTH, _HEIGHT = 960, 160  # units of the picture
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800)  # seconds
_MOST_LABELS: Final = 6


def page(all_: "ReportData", about: str, version: str) -> str:
    """Return the page. `about` says in words what it is a report of."""
    return _environment().get_template("report.html").render(
        all=all_,
        about=about,
        version=version,
        words=_WORDS,
        numbers={"times", "bytes out", "bytes in", *_WORDS.values()},
        open_rows=_OPEN_ROWS,
        target=target,
        cards=_cards(all_),
        chart=_chart(all_.moments),
        refusals=sorted(all_.refusals.values(), key=lambda each: -each.count),
        places=sorted(all_.places.items(), key=_weight),
    )  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": "{:,}".format, "moment": _moment, "span": _span, "details": _details}
    return environment


def _shown(value: Any) -> Any:
    """Spell out and cut a text; what the template has made itself, and numbers, are as they are."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    cut = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}… [{len(value) - _LONGEST} more]"
    return visible(cut)


def _cards(all_: "ReportData") -> "list[tuple[str, int, str]]":
    """Return the numbers at the top: style, count and word."""
    totals: Counter[Outcome] = Counter()
    for (_, outcome), count in all_.moments.counts.items():
        totals[outcome] += count
    kinds = Counter(event.kind for event in all_.warnings)
    return [
        *((outcome.value, totals[outcome], word) for outcome, word in reversed(_WORDS.items())),
        ("blocked", kinds[Kind.TAMPERING_DETECTED], "tampering"),
        ("blocked", kinds[Kind.SECRET_DETECTED], "leaks"),
        ("would_block", kinds[Kind.ANOMALY_DETECTED], "unusual"),
        ("would_block", kinds[Kind.TASK_TAINTED], "tainted"),
    ]


def _details(event: "Event") -> str:
    if event.kind in APPROVALS or event.kind is Kind.ANOMALY_DETECTED:
        return describe(event)
    return event.detail or (event.fault.detail if event.fault else "") or "; ".join(event.problems)


def _weight(item: "tuple[object, DestinationStats]") -> tuple[int, int]:
    """Put what let out most bytes first, then what was tried most."""
    return -item[1].up, -item[1].attempts.total()


def _span(span: "Span | None") -> str:
    if span is None:
        return "nothing"
    first, last = _moment(span.first), _moment(span.last)
    if first == last:
        return first
    return f"{first} to {last[11:] if first[:10] == last[:10] else last}"


def _moment(time: int) -> str:
    return datetime.fromtimestamp(time // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


class _Bar(NamedTuple):
    outcome: Outcome
    attempts: int
    x: str
    y: str
    width: str
    height: str


class _Chart(NamedTuple):
    """Attempts over time: at most `highest` in a column of `seconds`."""

    highest: int
    seconds: str
    bars: list[_Bar]
    labels: list[tuple[str, str]]


def _chart(moments: "AttemptTimes") -> _Chart | None:
    if not moments.counts:
        return None
    numbers = [number for number, _ in moments.counts]
    first, last = min(numbers) * moments.width, (max(numbers) + 1) * moments.width
    width = -(-(last - first) // _COLUMNS)  # ns a column
    columns: list[Counter[Outcome]] = [Counter() for _ in range(_COLUMNS)]
    for (number, outcome), count in moments.counts.items():
        columns[(number * moments.width - first) // width][outcome] += count
    highest = max(column.total() for column in columns)
    bars = list(_bars(columns, highest))
    return _Chart(highest, f"{width / 1e9:.3g}", bars, list(_labels(first, width * _COLUMNS)))


def _bars(columns: list[Counter[Outcome]], highest: int) -> "Iterator[_Bar]":
    wide = _WIDTH / _COLUMNS
    for number, column in enumerate(columns):
        bottom = 0.0
        for outcome in _WORDS:
            if count := column[outcome]:
                tall = max(1.5, count / highest * (_HEIGHT - 10))  # one among thousands is still seen
                bottom += tall
                x, y = f"{number * wide:.1f}", f"{_HEIGHT - bottom:.1f}"
                yield _Bar(outcome, count, x, y, f"{wide - 1:.1f}", f"{tall:.1f}")


def _labels(first: int, span: int) -> "Iterator[tuple[str, str]]":
    """Name some round moments, in UTC, and where they stand."""
    seconds = span / 1e9
    weeks = -(-int(seconds) // (_MOST_LABELS * _STEPS[-1]))
    step = next((each for each in _STEPS if seconds / each <= _MOST_LABELS), weeks * _STEPS[-1])
    at = -(-first // (step * 10**9)) * step
    form = "%m-%d" if step >= 86400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    while (at * 10**9 - first) < span:
        x = (at * 10**9 - first) / span * _WIDTH
        yield f"{min(max(x, 18), _WIDTH - 24):.0f}", datetime.fromtimestamp(at, UTC).strftime(form)
        at += step
