"""Who is who among the processes of a service: what each kind is known by, so that none is taken for another."""

import contextlib
import os
from pathlib import Path

from tests.soak import leftovers

OF_A_RUN = ("client", "run", "outer", "init", "task", "watcher", "copier", "relay", "spare")  # others' runs go on
OF_ALL = ("worker", "keyholder", "zygote", "keeper", "scraped")  # and so do all of them
VICTIMS = ("nobody", *OF_A_RUN, *OF_ALL, "service")


def there(kind, service, runs, status):
    """Return the processes of a kind, if it isn't that of a client, which a service of this pid has just now.

    `runs` are the pids that it lists, and `status` is what it says of itself.
    """
    if kind == "service":
        found = [service]
    elif kind in OF_ALL:
        found = having(status)[kind]
    elif kind == "spare":
        found = [pid for pid in leftovers.children(service) if pid not in runs and waits(pid)]
    else:
        found = [pid for run in sorted(runs) for pid in _of_a_run(kind, run)]
    return [pid for pid in found if pid and leftovers.started(pid)]


def having(status):
    """Return who serves all runs, by kind, as the service says; 0: there is none just now."""
    workers = [worker["pid"] for worker in status["workers"]]
    return {kind: workers if kind == "worker" else [status[kind]] for kind in OF_ALL}


def waits(pid):
    """Whether a child of the service's waits with an empty sandbox: it shows nobody's streams, and is above an init."""
    streams = [_opened(pid, number) for number in range(3)]
    return streams == [os.devnull] * 3 and any(_name(child) == "exeat-init" for child in leftovers.children(pid))


def strangers(service, runs, status):
    """Return the children of a service that it has no word for: not listed, not said to be there, and not waiting."""
    said = {*runs, *(pid for pids in having(status).values() for pid in pids)}
    return [pid for pid in leftovers.children(service) if pid not in said and not waits(pid)]


def _of_a_run(kind, run):
    below = leftovers.children(run)
    outer = [pid for pid in below if _name(pid) == "exeat-init"]
    inits = [pid for each in outer for pid in leftovers.children(each)]
    return {
        "run": [run],
        "outer": outer,
        "init": inits,
        "task": [pid for init in inits for pid in leftovers.children(init)],
        "watcher": [pid for pid in below if _name(pid) == "exeat-watcher"],
        "copier": [pid for pid in below if _nice(pid) > _nice(run)],  # of a reviewed workspace: nobody waits for it
        "relay": [pid for pid in below if _has_pipes_alone(pid)],
    }[kind]


def _name(pid):
    """What a process calls itself: what it is in its midst of becoming has its parent's name."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _nice(pid):
    with contextlib.suppress(OSError):
        return os.getpriority(os.PRIO_PROCESS, pid)
    return -1000


def _opened(pid, number):
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{number}")
    return ""


def _has_pipes_alone(pid):
    opened = leftovers.links(f"/proc/{pid}/fd")
    return bool(opened) and all(link.startswith("pipe:") for link in opened)
