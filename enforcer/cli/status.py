"""`exeat status`: whether a service runs, and how it is."""

import argparse
import json
import time

from enforcer.cli import deciding
from enforcer.cli.words import several
from enforcer.system.errors import ExeatError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat status` takes."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text for people, json for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print how the service is; 0 when there is one and all of its workers are there."""
    from enforcer.service.control_client import ask

    registry, broken, unheard = None, "", ""
    try:
        registry = _registry()
        broken = _broken() if registry is None else str(registry["broken"])
    except ExeatError as error:
        unheard = str(error)
    try:
        (status,) = ask({"what": "status"})
    except ExeatError as error:
        deciding.warn(str(error))
        deciding.warn(_in_words(registry, broken, unheard))
        return error.status
    status["approvals"] = registry
    status["approvals_error"] = unheard
    status["approvers_broken"] = broken
    whole = all(worker["pid"] for worker in status["workers"]) and not unheard
    if arguments.format == "json":
        print(json.dumps(status, indent=2))
        return 0 if whole else 1
    minutes = int(time.time() - status["began"]) // 60
    print(f"the service runs as process {status['pid']} for {several(minutes, 'minute')}, on {status['control']}")
    print(f"journal: {status['journal']}")
    dead = f", {several(status['restarts'], 'worker')} replaced so far" if status["restarts"] else ""
    print(f"{several(status['sandboxes'], 'sandbox')} in {several(len(status['workers']), 'worker')}{dead}")
    for worker in status["workers"]:
        who = f"process {worker['pid']}" if worker["pid"] else "being replaced"
        print(f"  worker {worker['number']}: {who}, uid {worker['uid']}, {several(worker['sandboxes'], 'sandbox')}")
    from proxy.telemetry.visible import visible

    for each in status["alone"]:
        what = visible(f"{each['name']} ({each['task']})")
        print(f"  {what} has a gate of its own: {each['why']}")
    signs = f"process {status['keyholder']}" if status["keyholder"] else "none now, one is started when it is needed"
    print(f"  key holder: {signs}")
    print(_in_words(registry, broken, unheard))
    return 0 if whole else 1


def _registry() -> dict[str, object] | None:
    """Return how the registry of approvals is; None: none runs, which is no fault: it is started when it is needed."""
    from enforcer.approvals.client import ask_running

    said = ask_running({"what": "status"})
    return said[0] if said else None


def _broken() -> str:
    """Return what a registry would say of approvers.yaml if one were started now, or nothing."""
    from enforcer.approvals import approvers

    try:
        approvers.read(approvers.place())
    except ExeatError as error:
        return f"nobody can approve anything: {error}"
    return ""


def _in_words(registry: dict[str, object] | None, broken: str, unheard: str) -> str:
    from proxy.telemetry.visible import visible

    if unheard:
        return f"approvals: {visible(unheard)}"
    if registry is None:
        said = f"; {visible(broken)}" if broken else ""
        return f"approvals: no registry runs; it is started when one is needed{said}"
    told = registry["told"]
    last = broken or (told[-1] if isinstance(told, list) and told else "")
    said = f"; {visible(str(last))}" if last else ""
    return (
        f"approvals: process {registry['pid']} on {registry['socket']}, "
        f"{several(int(str(registry['gates'])), 'gate')}, {registry['pending']} pending{said}"
    )
