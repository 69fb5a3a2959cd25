"""Record: a line of the journal, decoded and checked, as every format takes it.

Its texts are escaped (`visible`), because receivers print them on terminals and pages and not all of them escape. The
journal has the exact text, under the same id.
"""

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from proxy.telemetry.events import FORMER_KINDS
from proxy.telemetry.formats.fields import Record, at, nanoseconds
from proxy.telemetry.masking import cut
from proxy.telemetry.schema import fitted
from proxy.telemetry.visible import visible
from proxy.wire import strict_json

_LARGEST = 2**63 - 1  # larger integers fit no receiver's field
_SHORT_LIMIT = 128  # characters of a text in a shortened record
_SHORTER_LIMITS = 64, 16  # of texts other than destination and rule; the second limit if the first is too long
_MOST_ITEMS = 4  # members of a list
_LONGEST_NAME = 256  # of a host name: never cut
_HOST_FIELDS = frozenset({"destination.name", "dns.question", "tls.sni"})
# Members that locate the event in the journal; a sandbox chooses none of them.
_CORE = frozenset({
    "time", "id", "kind", "verdict", "outcome", "reason", "revision", "mode", "cause", "protocol", "bytes", "duration",
    "host", "sandbox", "prev", "hash",
})  # fmt: skip
_LONGER_FIELDS = _CORE | {"http.path", "rules"}


def read(line: bytes) -> Record:
    """Return the record of a line of the journal. Raises ValueError for a line without time, id and kind."""
    try:
        decoded = strict_json.without_misfits(line)
        if not isinstance(decoded, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004  one error for every line that is no event
        record = escape_record(_list_agent_attributes(_replace_former_kind(fitted(decoded))))
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not (record.get("id") and record.get("kind") and "time" in record):
        raise ValueError("it has no time, id and kind")
    nanoseconds(record)
    return record


def _replace_former_kind(record: dict[str, Any]) -> dict[str, Any]:
    """Replace the former name of a kind by the current one."""
    current = FORMER_KINDS.get(str(record.get("kind")))
    return record if current is None else {**record, "kind": current.value}


def _list_agent_attributes(record: dict[str, Any]) -> dict[str, Any]:
    """Turn agent attributes into a list of `name=value`: their names must not become columns at receivers."""
    agent = record.get("agent")
    if isinstance(agent, dict) and isinstance(attributes := agent.get("attributes"), dict):
        record = {**record, "agent": {**agent, "attributes": [f"{name}={value}" for name, value in attributes.items()]}}
    return record


def escape_record(record: Record) -> dict[str, Any]:
    """Return a copy with all texts cut and escaped, keys included."""
    return {visible(cut(key)): _escape_value(value) for key, value in record.items()}


def _escape_value(value: Any) -> Any:
    if isinstance(value, str):
        return visible(cut(value))
    if isinstance(value, Mapping):
        return escape_record(value)
    if isinstance(value, list):
        return [_escape_value(each) for each in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        return None
    return value


def shortened(record: Record, note: str) -> Iterator[dict[str, Any]]:
    """Yield ever shorter ASCII versions of a record, with `note` in the detail; the last one is its core.

    Destination and rule keep the most characters: a task must not be able to hide them with long texts.
    """
    for limit in _SHORTER_LIMITS:
        short = {key: _shorten(key, value, limit) for key, value in record.items()}
        detail = short.get("detail")
        yield {**short, "detail": f"{note}: {detail}" if detail else note}
    yield core(record, note)


def _shorten(key: str, value: Any, limit: int) -> Any:
    if isinstance(value, str):
        text = _ascii(value)
        limit = _LONGEST_NAME if key in _HOST_FIELDS else _SHORT_LIMIT if key in _LONGER_FIELDS else limit
        return text if len(text) <= limit else f"{text[: limit - 3]}..."
    if isinstance(value, list):
        return [_shorten(key, each, limit) for each in value[:_MOST_ITEMS]]
    if isinstance(value, Mapping):
        members = list(value.items())[: 2 * _MOST_ITEMS]
        return {_ascii(name)[:_SHORT_LIMIT]: _shorten(f"{key}.{name}", inner, limit) for name, inner in members}
    return value


def core(record: Record, note: str) -> dict[str, Any]:
    """Return the members that no sandbox chose, with `note` as the detail: every receiver accepts this."""
    short = {key: _shorten_core(value) for key, value in record.items() if key in _CORE}
    task = at(record, "task.id")
    return {**short, **({} if task is None else {"task": {"id": _shorten_core(task)}}), "detail": note}


def _shorten_core(value: Any) -> Any:
    """Return a text in ASCII, cut; other values unchanged."""
    return _ascii(value)[:_SHORT_LIMIT] if isinstance(value, str) else value


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def one_line(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as one line of printable ASCII, newline included."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"{text}\n".replace("\x7f", "\\u007f").encode("ascii")
