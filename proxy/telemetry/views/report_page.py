"""The report as one HTML page: readable offline, light and dark, with a timeline in SVG and nothing in it that runs.

Home of invariant 7 for this page: every text from the journal goes through `_text`, which spells out what is not
visible and escapes the rest for HTML; the page forbids itself scripts, and everything that lies elsewhere.
"""

import html
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from proxy.telemetry.descriptions import what
from proxy.telemetry.events import APPROVALS, Kind
from proxy.telemetry.views.report_data import MOST, target
from proxy.telemetry.visible import visible
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from proxy.telemetry.events import Event
    from proxy.telemetry.views.report_data import Gathered, Moments, Place, Span

_LONGEST: Final = 300  # characters of one text
_OPEN: Final = 25  # rows that are shown without a click
_WORDS: Final = {
    Outcome.PASSED: "allowed",
    Outcome.WOULD_BLOCK: "only audited",
    Outcome.FAILED: "failed",
    Outcome.BLOCKED: "blocked",
}
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2129; --dim: #6b7280; --line: #d9dde3; --ground: #fff; --soft: #f4f5f7;
  --passed: #2f7d4f; --would_block: #b7791f; --failed: #7c8794; --blocked: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #9aa3af; --line: #3a414b; --ground: #16191e;
  --soft: #1f242b; --passed: #58b37c; --would_block: #d9a441; --failed: #8b95a3; --blocked: #e8695b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 2rem auto;
  max-width: 64rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .dim { color: var(--dim); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .85rem/1.4 ui-monospace, monospace; background: var(--soft); padding: 0 .25rem; }
.passed { fill: var(--passed); color: var(--passed); } .blocked { fill: var(--blocked); color: var(--blocked); }
.failed { fill: var(--failed); color: var(--failed); }
.would_block { fill: var(--would_block); color: var(--would_block); }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--dim); text-anchor: middle; }
svg .axis { stroke: var(--line); } summary { cursor: pointer; color: var(--dim); margin: .5rem 0; }
.cards { display: flex; gap: 1rem; flex-wrap: wrap; } .cards div { background: var(--soft); padding: .6rem 1rem; }
.cards b { display: block; font-size: 1.4rem; }
@media print { details > * { display: block; } }
"""


def page(all_: "Gathered", about: str, version: str) -> str:
    """Return the page. `about` says in words what it is a report of."""
    body = "".join((
        f"<h1>Exeat: {_text(about)}</h1>",
        f'<p class="dim">{_span(all_.span)} (UTC), {all_.events:,} events. Made by exeat {_text(version)}.</p>',
        _cards(all_),
        _section("Over time", timeline(all_.moments)),
        _section("Look at these first", _warnings(all_)),
        _section("What was refused, and why", _refusals(all_)),
        _section("Where it went", _places(all_)),
        _section("Tasks", _tasks(all_)),
        _section("Rules in force", _policies(all_)),
    ))  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f"<title>Exeat: {_text(about)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _cards(all_: "Gathered") -> str:
    totals: Counter[Outcome] = Counter()
    for (_, outcome), count in all_.moments.counts.items():
        totals[outcome] += count
    kinds = Counter(event.kind for event in all_.warnings)
    said = [(outcome.value, totals[outcome], _WORDS[outcome]) for outcome in ORDER[::-1]]
    said += [("blocked", kinds[Kind.TAMPER], "tampering"), ("blocked", kinds[Kind.LEAK_FOUND], "leaks")]
    said += [("would_block", kinds[Kind.TASK_UNUSUAL], "unusual"), ("would_block", kinds[Kind.TASK_TAINTED], "tainted")]
    cards = "".join(f'<div><b class="{style}">{count:,}</b>{word}</div>' for style, count, word in said if count)
    return f'<div class="cards">{cards or "<div>nothing was attempted</div>"}</div>'


def _warnings(all_: "Gathered") -> str:
    rows = (
        (
            _moment(event.time),
            _text(event.kind.value),
            _who(event),
            _to(event),
            _text(_details(event)),
        )
        for event in all_.warnings
    )
    return _table(("when", "what", "task", "where to", "details"), rows, len(all_.warnings), all_.left_out["warnings"])


def _details(event: "Event") -> str:
    if event.kind in APPROVALS or event.kind is Kind.TASK_UNUSUAL:
        return what(event)
    return event.detail or (event.fault.detail if event.fault else "") or "; ".join(event.problems)


def _refusals(all_: "Gathered") -> str:
    known = sorted(all_.refusals.values(), key=lambda each: -each.count)
    rows = (
        (
            f"{each.count:,}",
            _to(each.event),
            f'<span class="{_class(each.event.outcome)}">{_text(each.event.reason.value)}</span>'
            if each.event.reason
            else "",
            _text(", ".join(each.event.rules)),
            _who(each.event),
            _by(each.event),
            _span(each.span),
        )
        for each in known
    )
    heads = ("times", "where to", "reason", "rules", "task", "process", "when")
    return _table(heads, rows, len(known), all_.left_out["refusals"])


def _places(all_: "Gathered") -> str:
    known = sorted(all_.places.items(), key=_weight)
    rows = (
        (
            _place(*where),
            *(f'<span class="{outcome.value}">{place.attempts[outcome] or ""}</span>' for outcome in ORDER),
            f"{place.up:,}" if place.up else "",
            f"{place.down:,}" if place.down else "",
            _text(", ".join(place.rules)),
            _span(place.span),
        )
        for where, place in known
    )
    heads = ("where to", *(_WORDS[outcome] for outcome in ORDER), "bytes out", "bytes in", "rules", "when")
    return _table(heads, rows, len(known), all_.left_out["places"])


def _weight(item: "tuple[object, Place]") -> tuple[int, int]:
    """Put what let out most bytes first, then what was tried most."""
    return -item[1].up, -item[1].attempts.total()


def _tasks(all_: "Gathered") -> str:
    runs = list(all_.runs.values())
    rows = (
        (
            f"{_text(run.name)}<br><code>{_text(run.id)}</code>",
            _text(", ".join(f"{name}={value}" for name, value in run.labels.items())),
            f"<code>{_text(' '.join(run.argv))}</code>" if run.argv else "",
            _span(run.span),
            _text(run.ending or "no end in this part of the journal"),
            *(f'<span class="{outcome.value}">{run.attempts[outcome] or ""}</span>' for outcome in ORDER),
        )
        for run in runs
    )
    heads = ("task", "labels", "command", "when", "how it ended", *(_WORDS[outcome] for outcome in ORDER))
    return _table(heads, rows, len(runs), all_.left_out["tasks"])


def _policies(all_: "Gathered") -> str:
    rows = (
        (
            _moment(event.time),
            f"<code>{_text(revision[:16])}</code>",
            _text(event.mode.value if event.mode else ""),
            _text(", ".join(event.sources)),
        )
        for revision, event in all_.policies.items()
    )
    return _table(("first seen", "revision", "mode", "files"), rows, len(all_.policies), all_.left_out["policies"])


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _table(heads: "Sequence[str]", rows: "Iterable[Sequence[str]]", count: int, left_out: int) -> str:
    """Make a table of cells that are HTML already; long ones are folded, and what is missing is said."""
    if not count:
        return ""
    numbers = {"times", "bytes out", "bytes in", *_WORDS.values()}
    marks = [' class="n"' if head in numbers else "" for head in heads]
    head = "".join(f"<th{mark}>{name}</th>" for mark, name in zip(marks, heads, strict=True))

    def body(some: "Iterator[Sequence[str]]", most: int) -> str:
        lines = []
        for row in some:
            lines.append(
                "<tr>" + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
            )
            if len(lines) == most:
                break
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

    rest = iter(rows)
    shown = body(rest, _OPEN)
    if count > _OPEN:
        shown += f"<details><summary>{count - _OPEN} more</summary>{body(rest, MOST)}</details>"
    if left_out:
        shown += f'<p class="dim">{count:,} are told apart; {left_out:,} events are of others.</p>'
    return shown


def _text(text: str) -> str:
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… [{len(text) - _LONGEST} more]"
    return html.escape(visible(cut))


def _to(event: "Event") -> str:
    shown = _place(*target(event))
    if event.http is not None and event.http.method:
        shown += f"<br><code>{_text(event.http.method)} {_text(event.http.path or '')}</code>"
    return shown


def _place(name: str, port: int | None, protocol: str) -> str:
    where = _text(name) + (f":{port}" if port else "")
    return f'{where} <span class="dim">{_text(protocol)}</span>' if protocol else where


def _who(event: "Event") -> str:
    return f"{_text(event.task.name)}<br><code>{_text(event.task.id)}</code>" if event.task.id else ""


def _by(event: "Event") -> str:
    process = event.process
    return f"{_text(process.exe)} <code>{_text(' '.join(process.argv[1:]))}</code>" if process is not None else ""


def _class(outcome: Outcome | None) -> str:
    return outcome.value if outcome is not None else ""


def _span(span: "Span | None") -> str:
    if span is None:
        return "nothing"
    first, last = _moment(span.first), _moment(span.last)
    if first == last:
        return first
    return f"{first} to {last[11:] if first[:10] == last[:10] else last}"


def _moment(time: int) -> str:
    return datetime.fromtimestamp(time // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


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
