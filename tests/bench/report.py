"""The findings as tables to read and as JSON to keep."""

import json
import os
import platform
from pathlib import Path

from tests.bench.figures import Figure, Findings, Values


def table(findings: Findings) -> str:
    """Say everything, a table a measurement, the goals last."""
    parts = [_measurement(title, found) for title, found in findings.figures.items()]
    if findings.goals:
        parts.append(_goals(findings))
    parts += [f"note: {note}" for note in findings.notes]
    return "\n\n".join(parts)


def as_json(findings: Findings, settings: dict) -> str:
    """Give every value of every round."""
    return json.dumps(
        {
            "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "kernel": platform.release()},
            "python": platform.python_version(),
            "settings": settings,
            "measurements": {
                title: [
                    {
                        "says": figure.says,
                        "unit": figure.unit,
                        "ways": {name: _value(values) for name, values in figure.by_way.items()},
                    }
                    for figure in found
                ]
                for title, found in findings.figures.items()
            },
            "goals": [
                {
                    "says": goal.says,
                    **_value(goal.found),
                    "limit": goal.limit,
                    "at_least": goal.at_least,
                    "unit": goal.unit,
                    "met": goal.met,
                }
                for goal in findings.goals
            ],
            "notes": findings.notes,
        },
        indent=1,
    )


def _value(values: Values) -> dict:
    return {"median": values.median, "each": values.each}


def _measurement(title: str, found: list[Figure]) -> str:
    names = list(dict.fromkeys(name for figure in found for name in figure.by_way))
    rows = [["", *(f"{figure.says} [{figure.unit}]" for figure in found)]]
    rows += [[name, *(_cell(figure, name) for figure in found)] for name in names]
    return f"{title}\n{_aligned(rows)}"


def _cell(figure: Figure, name: str) -> str:
    values = figure.by_way.get(name)
    if values is None:
        return "-"
    low, high = values.spread
    spread = f" ({low:.{figure.digits}f}-{high:.{figure.digits}f})" if len(values.each) > 1 else ""
    return f"{values.median:.{figure.digits}f}{spread}"


def _goals(findings: Findings) -> str:
    rows = [["", "found", "goal", ""]]
    for goal in findings.goals:
        low, high = goal.found.spread
        spread = f" ({low:.2f}-{high:.2f})" if len(goal.found.each) > 1 else ""
        unit = f" {goal.unit}" if goal.unit else ""
        sign = ">=" if goal.at_least else "<="
        verdict = "met" if goal.met else "MISSED"
        rows.append([goal.says, f"{goal.found.median:.2f}{spread}{unit}", f"{sign} {goal.limit:g}{unit}", verdict])
    return f"goals\n{_aligned(rows)}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
