"""Commands of the service: `exeat up`, `ps`, `status`, `stop`, and `attach` and `detach` for namespaces of others.

What only `up` and `attach` need is imported by them: rules take others' commands longer than all that they do.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Final

from enforcer.cli import output
from enforcer.cli.output import count_of, format_elapsed, print_table
from enforcer.cli.parsing import DEFAULT_METRICS, FORMAT, LABEL, RULES, WRITTEN_JOURNAL, argument, metrics_option
from enforcer.system.errors import ExeatError, HostError, UsageError
from proxy.telemetry.visible import visible

_MOST_WORKERS = 64
_WIDEST_NAME = 40  # columns
_PS_HEAD = ("TASK", "NAME", "PID", "WORKER", "SINCE", "APPROVALS", "WHERE")
_NOTHING: dict[str, object] = {"pending": 0, "tainted": False}
_UNHEARD: dict[str, object] = {"pending": None, "tainted": None}


UP_ARGUMENTS: Final = (
    argument("--workers", "N", "number of worker processes, 1 to 64 (default: one for each core)", type=int),
    metrics_option(" of all tasks of the service", DEFAULT_METRICS),
    WRITTEN_JOURNAL,
)
PS_ARGUMENTS: Final = (FORMAT,)
STATUS_ARGUMENTS: Final = (FORMAT,)
STOP_ARGUMENTS: Final = (
    argument("task", "TASK", "task: its id or name, as `exeat ps` shows them"),
    argument("--kill", "", "send SIGKILL at once, without 10 seconds to end after SIGTERM"),
)
ATTACH_ARGUMENTS: Final = (
    argument("namespace", "PID|NETNS", "network namespace: a process in it, or the file that it is bound to"),
    RULES,
    argument("--task", "NAME", "name of the task, for rules and events (default: `attached`)"),
    LABEL,
)
DETACH_ARGUMENTS: Final = (
    argument("namespace", "PID|NETNS", "network namespace as it was attached, or the id or name of its task"),
)


def run_up(arguments: argparse.Namespace, system: Path | None = None) -> int:
    """Serve until told to end (SIGTERM). `system`: for tests, not for users."""
    from enforcer.policy.rule_files import SYSTEM

    _have_streams()
    try:
        _serve(arguments, system or SYSTEM)
    except OSError as error:
        raise HostError(error.strerror or str(error)) from error
    return 0


def _have_streams() -> None:
    """Open missing standard streams on our own descriptors 0 to 2: runs put theirs in these places."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def count_workers(wanted: int | None) -> int:
    """Return the number of workers: the given one, else one for each core up to the maximum."""
    if wanted is None:
        return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    if not 0 < wanted <= _MOST_WORKERS:
        raise UsageError(f"invalid value {wanted} for `--workers`: use 1 to {_MOST_WORKERS}")
    return wanted


def _serve(arguments: argparse.Namespace, system: Path) -> None:
    from enforcer.cli import run as run_command
    from enforcer.cli import status_of_output_error
    from enforcer.cli.parsing import Parser
    from enforcer.cli.run import open_metrics_port
    from enforcer.service.control_server import Control, Notifier, passed_sockets
    from enforcer.service.run_setup import RunCommand
    from enforcer.service.service import Service, raise_limits
    from enforcer.system import state
    from enforcer.worker import trust, worker

    size = count_workers(arguments.workers)
    notifier, sockets = Notifier(), passed_sockets()
    control = Control(sockets[0][1] if sockets else None)
    try:
        raise_limits()
        state.make_private(state.state_directory())
        journal = state.make_private(arguments.journal.absolute() if arguments.journal else state.journal_directory())
        trusted = trust.public_authority(state.authority_directory(), state.make_private(state.cache_directory()))
        worker_paths = worker.WorkerPaths(
            state.authority_directory(),
            trusted.fingerprint,
            trusted.expires,
            trusted.certificate.encode(),
            journal,
            None,
        )
        metrics = open_metrics_port(arguments.metrics) if arguments.metrics else None
        command = RunCommand(
            Parser.of("run", run_command.ARGUMENTS).read,
            run_command.make_run_request,
            run_command.perform,
            status_of_output_error,
        )
        service = Service(
            control, worker_paths, size, system=system, command=command, notifier=notifier, metrics=metrics
        )
    except BaseException:
        control.close()
        raise
    shown = "" if metrics is None else ", metrics on {}:{}".format(*metrics.getsockname()[:2])
    print(f"exeat: serving with {size} workers on {control.path}{shown}", file=sys.stderr, flush=True)
    try:
        service.run()
    finally:
        service.close()


def run_ps(arguments: argparse.Namespace) -> int:
    """Print one line for each task."""
    from enforcer.service.control_client import send_request

    known, otherwise = _known()
    found = [
        {**each, **known.get(str(each["task"]), otherwise)}
        for part in send_request({"what": "list"})
        for each in part["sandboxes"]
    ]
    if arguments.format == "json":
        print(json.dumps(found, indent=2))
        return 0
    print_table(_PS_HEAD, map(_row, found), _WIDEST_NAME)
    return 0


def _known() -> tuple[dict[str, dict[str, object]], dict[str, object]]:
    """Return the approvals server's data about tasks, by id, and the default for all others."""
    from enforcer.approvals.client import ask_running

    try:
        tasks = [each for said in ask_running({"what": "tasks"}) or () for each in said["tasks"]]
    except ExeatError as error:
        print(f"exeat: pending approvals and taint are unknown: {error}", file=sys.stderr)
        return {}, _UNHEARD
    return {str(each["task"]): {"pending": each["pending"], "tainted": each["tainted"]} for each in tasks}, _NOTHING


def _row(each: dict[str, object]) -> tuple[str, ...]:
    ran = format_elapsed(time.time() - float(str(each["began"])))
    worker = "-" if each["worker"] is None else str(each["worker"])
    where = each["attached"] or each["workspace"]
    pending = f"{each['pending']} pending" if each["pending"] else ""
    approvals = ", ".join(part for part in (pending, "tainted" if each["tainted"] else "") if part)
    approvals = approvals or ("?" if each["tainted"] is None else "-")
    return tuple(map(str, (each["task"], each["name"], each["pid"], worker, ran, approvals, where)))


def run_status(arguments: argparse.Namespace) -> int:
    """Print the state of the service; returns 0 if it runs with all of its workers."""
    from enforcer.service.control_client import send_request

    registry, broken, unheard = None, "", ""
    try:
        registry = _registry()
        broken = _broken() if registry is None else str(registry["broken"])
    except ExeatError as error:
        unheard = str(error)
    try:
        (status,) = send_request({"what": "status"})
    except ExeatError as error:
        output.warn(str(error))
        output.warn(_in_words(registry, broken, unheard))
        return error.status
    status["approvals"] = registry
    status["approvals_error"] = unheard
    status["approvers_broken"] = broken
    whole = all(worker["pid"] for worker in status["workers"]) and not unheard
    if arguments.format == "json":
        print(json.dumps(status, indent=2))
        return 0 if whole else 1
    minutes = int(time.time() - status["began"]) // 60
    print(f"the service runs as process {status['pid']} for {count_of(minutes, 'minute')}, on {status['control']}")
    print(f"journal: {status['journal']}")
    dead = f", {count_of(status['restarts'], 'worker')} replaced so far" if status["restarts"] else ""
    print(f"{count_of(status['sandboxes'], 'sandbox')} in {count_of(len(status['workers']), 'worker')}{dead}")
    for worker in status["workers"]:
        who = f"process {worker['pid']}" if worker["pid"] else "being replaced"
        print(f"  worker {worker['number']}: {who}, uid {worker['uid']}, {count_of(worker['sandboxes'], 'sandbox')}")
    for each in status["alone"]:
        what = visible(f"{each['name']} ({each['task']})")
        print(f"  {what} has a gate of its own: {each['why']}")
    signs = f"process {status['keyholder']}" if status["keyholder"] else "not running, started when it is needed"
    print(f"  certificate signer: {signs}")
    print(_in_words(registry, broken, unheard))
    return 0 if whole else 1


def _registry() -> dict[str, object] | None:
    """Return the state of the approvals server; None if it doesn't run, which is no fault."""
    from enforcer.approvals.client import ask_running

    said = ask_running({"what": "status"})
    return said[0] if said else None


def _broken() -> str:
    """Return what an approvals server would report about approvers.yaml, or nothing."""
    from enforcer.approvals import approvers

    try:
        approvers.read(approvers.place())
    except ExeatError as error:
        return f"nobody can approve anything: {error}"
    return ""


def _in_words(registry: dict[str, object] | None, broken: str, unheard: str) -> str:
    if unheard:
        return f"approvals: {visible(unheard)}"
    if registry is None:
        said = f"; {visible(broken)}" if broken else ""
        return f"approvals: no approvals server runs; the first task that needs one starts it{said}"
    told = registry["told"]
    last = broken or (told[-1] if isinstance(told, list) and told else "")
    said = f"; {visible(str(last))}" if last else ""
    return (
        f"approvals: process {registry['pid']} on {registry['socket']}, "
        f"{count_of(int(str(registry['gates'])), 'gate')}, {registry['pending']} pending{said}"
    )


def run_stop(arguments: argparse.Namespace) -> int:
    """Stop a task with SIGTERM; returns 0 once the signal is sent."""
    from enforcer.service.control_client import send_request

    name = arguments.task
    (answer,) = send_request({"what": "stop", "name": name, "kill": arguments.kill})
    if answer["stopped"]:
        return 0
    if answer["found"]:
        raise UsageError(f"several tasks match `{name}`: {', '.join(answer['found'])}; name one by its id")
    if answer["attached"]:
        raise UsageError(
            f"`{name}` is an attached namespace, which `exeat stop` doesn't end: use `exeat detach {name}`"
        )
    raise UsageError(f"the service runs no task `{name}`; `exeat ps` lists the tasks")


def run_attach(arguments: argparse.Namespace, system: Path | None = None) -> int:
    """Attach a namespace; returns 0 once it has the gate. `system`: for tests."""
    from enforcer.policy import run_request
    from enforcer.policy.rule_files import SYSTEM, load_with_fingerprint, rule_files
    from enforcer.service import attach

    system = system or SYSTEM
    try:
        name = run_request.task_name(arguments.task, "attached")
        labels = run_request.task_labels(arguments.label)
        run_request.check_claims(name, labels, system)
        files = [Path(path) for path in rule_files(arguments.rules)]
        policy, asked, seen = load_with_fingerprint(files, system)
        target = attach.open_target(arguments.namespace)
        whole = tuple(os.path.join(os.getcwd(), path) for path in files)
        answer = attach.attach(target, attach.AttachRequest(policy, whole, asked, seen, system, name, labels))
    except OSError as error:
        raise HostError(error.strerror or str(error)) from error
    if policy.needs.approvals:
        print("exeat: an attached namespace has no approvals: where these rules ask, the gate denies", file=sys.stderr)
    shown = visible(target.named)
    print(f"{answer['task']} is `{shown}`, as long as the service runs; `exeat detach {shown}` ends it")
    return 0


def run_detach(arguments: argparse.Namespace) -> int:
    """Detach a namespace; returns 0 if it was attached."""
    from enforcer.service import attach

    named = arguments.namespace
    attach.detach(attach.namespace_path(named) if "/" in named else named)
    return 0
