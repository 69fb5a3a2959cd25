"""Joins what an agent reported with what its task did: by conversation and call, by time, and by process.

An agent's report is a claim, and so is its time (exporters send late, by their own clock): the result is no proof. Of
several conversations the one counts whose process is an ancestor of the event's process, by the kernel's records. If
that is unknown, time and names in the report rank the candidates, and all of them are shown.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy.telemetry.encoding import quoted
from proxy.telemetry.events import APPROVALS, DECISIONS, Agent, Kind
from proxy.telemetry.journal.query import Entry, LineFilter, fair_share, read_events
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from proxy.telemetry.events import Approval, Event, Process

MOST: Final = 200  # events of one kind of join
_CONVERSATIONS: Final = 3  # candidates to show
_NS: Final = 1_000_000_000
_BEFORE, _AFTER = 3600 * _NS, 600 * _NS  # range of the search
_APPROVAL_RANGE: Final = 7 * 86_400 * _NS  # between an approval and its attempt
_MAX_EXPORT_DELAY: Final = 600 * _NS  # delay of an agent's exporter
_DEFAULT_CALL_DURATION: Final = 60 * _NS  # assumed duration of a tool call without an end
_SLACK: Final = _NS
_NO_AGENT: Final = Agent("")  # for an event without agent fields
_ACTION_KINDS: Final = DECISIONS | APPROVALS | {
    Kind.COMMAND_DECIDED, Kind.SYSCALL_DENIED, Kind.SECRET_DETECTED, Kind.TAMPERING_DETECTED, Kind.TASK_TAINTED,
    Kind.ANOMALY_DETECTED, Kind.TASK_LIMITED,
}  # fmt: skip


@dataclass(slots=True)
class AgentContext:
    """Context of an event: what the agent reported, what the task did, and what its process did."""

    said: list[Entry] = field(default_factory=list)
    did: list[Entry] = field(default_factory=list)
    process: list[Entry] = field(default_factory=list)
    people: list[Entry] = field(default_factory=list)  # approval requests about the event, and their answers


def find_agent_context(
    directory: "Path", entry: Entry, near: "Iterable[Event]" = (), shown: "Collection[str]" = frozenset()
) -> AgentContext:
    """Find the context of an event. Missing fields come from `near`, its causes and effects. Raises OSError.

    `shown` has ids that the caller shows already; the result leaves them out.
    """
    near = list(near)
    event = entry.event
    process = next((each.process for each in (event, *near) if each.process is not None), None)
    asked = next((each.approval for each in (event, *near) if each.approval is not None and each.approval.id), None)
    if not event.task.id:
        return AgentContext()
    if event.kind is Kind.AGENT_SAID:
        conversation = [
            each for each in _read_agent_events(directory, event) if _conversation(each.event) == _conversation(event)
        ]
        around = [each for each in _select_turn(conversation, time_of_claim(event)) if each.event.id != event.id]
        return AgentContext(around, _find_actions(directory, event, conversation))
    seen = {each.id for each in (event, *near)}.union(shown)
    people = [
        each
        for each in (*_find_approval_events(directory, event, asked), *_find_reviews(directory, event))
        if each.event.id not in seen
    ]
    seen.update(each.event.id for each in people)
    did = [each for each in _find_process_events(directory, event, process) if each.event.id not in seen]
    return AgentContext(_find_agent_events(directory, event._replace(process=process)), [], did, people)


def time_of_claim(event: "Event") -> int:
    """Return the time of an agent's report in ns since 1970: by its own clock if plausible."""
    at = (event.agent or _NO_AGENT).at
    return at if 0 < event.time - at < _MAX_EXPORT_DELAY else event.time


def _find_agent_events(directory: "Path", event: "Event") -> list[Entry]:
    """Return the reports of each conversation around an event; those that name its destination first."""
    conversations: dict[tuple[str, str], list[Entry]] = {}
    for each in _read_agent_events(directory, event):
        conversations.setdefault(_conversation(each.event), []).append(each)
    turns = [turn for conversation in conversations.values() if (turn := _select_turn(conversation, event.time))]
    turns.sort(key=lambda turn: (_is_mentioned(turn, event), time_of_claim(turn[-1].event)), reverse=True)
    turns = _keep_same_process(
        turns,
        lambda turn: [_is_same_process(each.event, event) for each in conversations[_conversation(turn[0].event)]],
    )
    return [each for turn in turns[:_CONVERSATIONS] for each in turn]


def _select_turn(conversation: list[Entry], at: int) -> list[Entry]:
    """Return the prompt and the tool call of one conversation that `at` (ns since 1970) falls in."""
    conversation = sorted(conversation, key=lambda each: time_of_claim(each.event))
    before = [each for each in conversation if time_of_claim(each.event) <= at + _SLACK]
    prompt = next((each for each in reversed(before) if _is_prompt(each)), None)
    tool = next((each for each in reversed(before) if _is_tool(each)), None)
    if tool is not None and prompt is not None and time_of_claim(tool.event) < time_of_claim(prompt.event):
        tool = None  # it belongs to an earlier prompt
    found = [each for each in (prompt, tool) if each is not None]
    if tool is not None and (call := _agent(tool).call):
        found += [each for each in conversation if each is not tool and _agent(each).call == call]
    return sorted(found, key=lambda each: time_of_claim(each.event))


def _find_actions(directory: "Path", event: "Event", conversation: list[Entry]) -> list[Entry]:
    """Return the recorded actions of the task during the agent's reported activity."""
    begins, ends = _find_span(event, conversation)
    found = _events(directory, event, (), begins - _SLACK, ends + _SLACK)
    kept = _sample(each for each in found if each.event.kind in _ACTION_KINDS)
    return _keep_same_process(kept, lambda each: [_is_same_process(said.event, each.event) for said in conversation])


def _keep_same_process[T](found: list[T], relations: "Callable[[T], list[bool | None]]") -> list[T]:
    """Drop items of other processes if one is known to match: an exporter may be a separate process."""
    known = [relations(each) for each in found]
    if not any(True in each for each in known):
        return found
    return [each for each, said in zip(found, known, strict=True) if True in said or False not in said]


def _is_same_process(said: "Event", done: "Event") -> bool | None:
    """Whether the reporting process did it, or one of its descendants; None: unknown."""
    if said.process is None or done.process is None:
        return None
    return said.process.pid in (done.process.pid, *done.process.ancestor_pids)


def _find_span(event: "Event", conversation: list[Entry]) -> tuple[int, int]:
    """Return start and end of the reported activity, in ns since 1970."""
    at, agent = time_of_claim(event), event.agent or _NO_AGENT
    duration = _duration(agent)
    if agent.call:
        times = [time_of_claim(each.event) for each in conversation if _agent(each).call == agent.call]
        first, last = min(times, default=at), max(times, default=at)
        if first < last or duration:
            return min(first, at - duration), max(last, at)
    if duration:
        return (at, at + duration) if agent.source == "span" else (at - duration, at)
    is_next = _is_prompt if "prompt" in agent.name else _is_tool_or_prompt
    later = [time_of_claim(each.event) for each in conversation if time_of_claim(each.event) > at and is_next(each)]
    return at, min(later, default=at + (_AFTER if is_next is _is_prompt else _DEFAULT_CALL_DURATION))


def _find_process_events(directory: "Path", event: "Event", process: "Process | None") -> list[Entry]:
    """Return the actions of an event's process around it."""
    if process is None:
        return []
    text = f'"process":{{"pid":{process.pid},"exe":{quoted(process.exe)}'.encode()
    found = _events(directory, event, ((text,),), event.time - _BEFORE, event.time + _AFTER)
    return _sample(each for each in found if each.event.kind in _ACTION_KINDS)


def _find_approval_events(directory: "Path", event: "Event", approval: "Approval | None") -> list[Entry]:
    """Return the events of the approval that an event waited for or belongs to."""
    if approval is None:
        return []
    text = f'"approval":{{"id":{quoted(approval.id)}'.encode()
    return _sample(_events(directory, event, ((text,),), event.time - _APPROVAL_RANGE, event.time + _APPROVAL_RANGE))


def _sample(found: "Iterable[Entry]") -> list[Entry]:
    return fair_share(found, MOST, lambda each: (each.event.kind, each.event.outcome, each.event.reason))


def _find_reviews(directory: "Path", event: "Event") -> list[Entry]:
    """Return the reviews of a flagged event; they belong to no task."""
    if event.verdict is not Verdict.FLAG:
        return []
    groups = ((f'"kind":"{Kind.FLAG_SEEN}"'.encode(),), (f'"cause":"{event.id}"'.encode(),))
    found = read_events(directory, LineFilter(groups, event.time))
    return [each for _, each in zip(range(MOST), found, strict=False) if each.event.cause == event.id]


def _read_agent_events(directory: "Path", event: "Event") -> "Iterator[Entry]":
    at = time_of_claim(event)
    kind = f'"kind":"{Kind.AGENT_SAID}"'.encode()
    for each in _events(directory, event, ((kind,),), at - _BEFORE, at + _AFTER):
        if each.event.kind is Kind.AGENT_SAID:
            yield each


def _events(
    directory: "Path", event: "Event", groups: tuple[tuple[bytes, ...], ...], since: int, until: int
) -> "Iterator[Entry]":
    """Yield the events of the same task in a span."""
    groups = (*groups, (f'"id":{quoted(event.task.id)}'.encode(),))
    for each in read_events(directory, LineFilter(groups, max(0, since), until)):
        if each.event.task.id == event.task.id:
            yield each


def _agent(entry: Entry) -> Agent:
    return entry.event.agent or _NO_AGENT


def _conversation(event: "Event") -> tuple[str, str]:
    agent = event.agent or _NO_AGENT
    return agent.service, agent.conversation


def _is_tool(entry: Entry) -> bool:
    return bool(_agent(entry).tool or _agent(entry).call)


def _is_prompt(entry: Entry) -> bool:
    return "prompt" in _agent(entry).name


def _is_tool_or_prompt(entry: Entry) -> bool:
    return _is_tool(entry) or _is_prompt(entry)


def _duration(agent: Agent) -> int:
    """Return the reported duration in ns; 0: none, or implausible."""
    try:
        duration = int(float(agent.attributes.get("duration_ms", "")) * 1_000_000)
    except (ValueError, OverflowError):
        return 0
    return duration if 0 < duration < _BEFORE else 0


def _is_mentioned(turn: list[Entry], event: "Event") -> bool:
    """Whether the reports name the destination or the program of an event."""
    where, process = event.destination, event.process
    texts = (where.name if where is not None else None, process.exe.rpartition("/")[2] if process is not None else None)
    is_next = [text for text in (*texts, *event.argv[:1]) if text]
    said = " ".join(value for each in turn for value in _agent(each).attributes.values())
    return any(text in said for text in is_next)
