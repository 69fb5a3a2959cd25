"""Baseline of tasks of one name: destinations and bytes of its runs, and the deviations of a new run.

No I/O. The user who starts a task chooses its name, the task can't: a run is compared only with runs of its name, and
changes only that baseline. All tables are bounded: names, destinations of a name, and concurrent runs.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from proxy.telemetry.events import Anomaly, Count, Destination

ENOUGH: Final = 5  # runs of a name before an anomaly can be reported
MOST_NAMES: Final = 200
MOST_PLACES: Final = 100  # destinations of a name, and of a run
MOST_RUNS: Final = 200  # runs that have not ended
MOST_TOLD: Final = 10  # destinations of one run that are reported
MANY_TIMES: Final = 10  # factor over the largest earlier run
MUCH: Final = 10_000_000  # bytes; fewer are never an anomaly
_REMEMBERED_RUNS: Final = 16  # runs with stored bytes
_WINDOW = 0xFF  # one bit for each of the last eight runs with a new destination
_ERRATIC_FROM: Final = 4  # with more such runs, a new destination is no anomaly
_LONGEST: Final = 260  # characters of a destination: name and port


class Baseline(Struct, array_like=True):
    """Baseline of one task name. `last`: end of its last run, in ns since 1970."""

    runs: Count
    last: Count
    runs_with_news: Annotated[int, Meta(ge=0, le=_WINDOW)]  # one bit for each of the last eight runs
    up: Annotated[list[Count], Meta(max_length=_REMEMBERED_RUNS)]  # bytes that left in each of the last runs
    # number of runs, and the last of them
    places: Annotated[dict[str, tuple[Count, Count]], Meta(max_length=MOST_PLACES)]

    @property
    def is_established(self) -> bool:
        """Whether there were enough runs to compare a new one with."""
        return self.runs >= ENOUGH

    @property
    def is_erratic(self) -> bool:
        """Whether most runs of this name have new destinations."""
        return self.runs_with_news.bit_count() > _ERRATIC_FROM

    def take(self, run: "Run") -> None:
        """Learn from an ended run."""
        new = self.is_established and (run.exceeds_places or not set(run.places) <= self.places.keys())
        self.runs_with_news = (self.runs_with_news << 1 | new) & _WINDOW
        self.runs += 1
        self.last = max(self.last, run.last)
        self.up = [*self.up, run.up][-_REMEMBERED_RUNS:]
        for place in run.places:
            times, _ = self.places.get(place, (0, 0))
            self.places[place] = (times + 1, self.runs)
        while len(self.places) > MOST_PLACES:
            del self.places[min(self.places, key=lambda place: self.places[place][::-1])]


class Run(Struct, array_like=True):
    """Activity of one task so far. `last`: its last event; `ended`: its end; both in ns since 1970."""

    name: str
    last: Count
    ended: Count | None
    up: Count
    reported: Count  # destinations reported
    is_up_reported: bool
    exceeds_places: bool  # it had more destinations than can be stored
    places: Annotated[list[str], Meta(max_length=MOST_PLACES)]


class Baselines(Struct):
    """Baselines of all task names."""

    version: Literal[1]
    names: Annotated[dict[str, Baseline], Meta(max_length=MOST_NAMES)]
    runs: Annotated[dict[str, Run], Meta(max_length=MOST_RUNS)]  # by task id

    def record_destination(self, task: str, name: str, place: str, time: int) -> Anomaly | None:
        """Record an allowed destination of a task; return the anomaly, if any."""
        run = self._run(task, name, time)
        if place in run.places or len(place) > _LONGEST:
            return None
        if len(run.places) >= MOST_PLACES:
            run.exceeds_places = True
            return None
        run.places.append(place)
        baseline = self.names.get(name)
        if (
            baseline is None
            or not baseline.is_established
            or baseline.is_erratic
            or place in baseline.places
            or run.reported >= MOST_TOLD
        ):
            return None
        run.reported += 1
        return Anomaly("destination", 1, 0, baseline.runs)

    def record_bytes(self, task: str, name: str, up: int, time: int) -> Anomaly | None:
        """Record sent bytes of a task; return the anomaly of their sum, if any."""
        run = self._run(task, name, time)
        run.up += up
        baseline = self.names.get(name)
        if baseline is None or not baseline.is_established or run.is_up_reported:
            return None
        usual = max(baseline.up, default=0)
        if run.up <= max(MUCH, MANY_TIMES * usual):
            return None
        run.is_up_reported = True
        return Anomaly("bytes_up", run.up, usual, baseline.runs)

    def ended(self, task: str, name: str, time: int) -> None:
        """Record the end of a task. Later events of the task still count until `settle`."""
        self._run(task, name, time).ended = time

    def settle(self, before: int) -> None:
        """Learn from the runs that ended before `before` (ns since 1970)."""
        for task in [task for task, run in self.runs.items() if run.ended is not None and run.ended < before]:
            self._learn(task)

    def _learn(self, task: str) -> None:
        run = self.runs.pop(task)
        if run.name not in self.names and len(self.names) >= MOST_NAMES:
            # Evict names with few runs first: many invented names must not evict names in use
            del self.names[min(self.names, key=lambda name: (self.names[name].is_established, self.names[name].last))]
        self.names.setdefault(run.name, Baseline(0, 0, 0, [], {})).take(run)

    def _run(self, task: str, name: str, time: int) -> Run:
        run = self.runs.get(task)
        if run is None:
            if len(self.runs) >= MOST_RUNS:
                self._evict_run()
            run = self.runs[task] = Run(name, 0, None, 0, 0, is_up_reported=False, exceeds_places=False, places=[])
        run.last = max(run.last, time)
        return run

    def _evict_run(self) -> None:
        """Learn from the run that ended first; if none has ended, drop the one that was quiet longest."""
        ended_runs = {task: run.ended for task, run in self.runs.items() if run.ended is not None}
        if ended_runs:
            self._learn(min(ended_runs, key=lambda task: ended_runs[task]))
        else:
            del self.runs[min(self.runs, key=lambda task: self.runs[task].last)]


def no_baselines() -> Baselines:
    """Return empty baselines."""
    return Baselines(1, {}, {})


def place_of(destination: Destination) -> str:
    """Return a destination as the baseline stores it."""
    return f"{destination.name or destination.address or '?'}:{destination.port}"
