"""The timeline of a report: attempts by time, stacked by what became of them, as a picture in SVG.

Pure. Every number in it comes from counting; no text of a sandbox gets here. Colours are the page's.
"""

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.telemetry.report.gathered import Moments

ORDER: Final = (Outcome.PASSED, Outcome.WOULD_BLOCK, Outcome.FAILED, Outcome.BLOCKED)  # from the bottom up
_COLUMNS: Final = 120
_WIDTH, _HEIGHT, _FOOT = 960, 160, 22  # units of the picture
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800)  # seconds
_MOST_LABELS: Final = 6


def timeline(moments: "Moments") -> str:
    """Draw attempts: when, and what became of each. Empty for none."""
    if not moments.counts:
        return ""
    numbers = [number for number, _ in moments.counts]
    first, last = min(numbers) * moments.width, (max(numbers) + 1) * moments.width
    width = -(-(last - first) // _COLUMNS)  # ns a column
    columns: list[Counter[Outcome]] = [Counter() for _ in range(_COLUMNS)]
    for (number, outcome), count in moments.counts.items():
        columns[(number * moments.width - first) // width][outcome] += count
    highest = max(column.total() for column in columns)
    drawn = "".join(_bars(columns, highest))
    labels = "".join(_labels(first, width * _COLUMNS))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="Attempts over time, '
        f'at most {highest} in {width / 1e9:.3g} seconds">{drawn}'
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>{labels}</svg>'
    )


def _bars(columns: "Iterable[Counter[Outcome]]", highest: int) -> "Iterator[str]":
    wide = _WIDTH / _COLUMNS
    for number, column in enumerate(columns):
        bottom = 0.0
        for outcome in ORDER:
            if not (count := column[outcome]):
                continue
            tall = max(1.5, count / highest * (_HEIGHT - 10))  # one among thousands is still seen
            bottom += tall
            yield (
                f'<rect class="{outcome.value}" x="{number * wide:.1f}" y="{_HEIGHT - bottom:.1f}" '
                f'width="{wide - 1:.1f}" height="{tall:.1f}"><title>{count} {outcome.value}</title></rect>'
            )


def _labels(first: int, span: int) -> "Iterator[str]":
    """Name some round moments, in UTC."""
    seconds = span / 1e9
    weeks = -(-int(seconds) // (_MOST_LABELS * _STEPS[-1]))
    step = next((each for each in _STEPS if seconds / each <= _MOST_LABELS), weeks * _STEPS[-1])
    at = -(-first // (step * 10**9)) * step
    form = "%m-%d" if step >= 86400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    while (at * 10**9 - first) < span:
        x = (at * 10**9 - first) / span * _WIDTH
        said = datetime.fromtimestamp(at, UTC).strftime(form)
        yield f'<text x="{min(max(x, 18), _WIDTH - 24):.0f}" y="{_HEIGHT + 16}">{said}</text>'
        at += step
