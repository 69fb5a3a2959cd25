"""`exeat run` and `exeat shell`: runs a task, or a shell, in a sandbox behind its own gate.

Each option that says what sandbox a task gets stands for a key of `sandbox` in a rule file.
"""

import argparse
import errno
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enforcer.cli.parsing import (
    DEFAULT_METRICS,
    LABEL,
    RULES,
    WRITTEN_JOURNAL,
    Group,
    argument,
    metrics_option,
    old_spelling,
)
from enforcer.limits.resource_limits import TIMED_OUT
from enforcer.policy import run_request
from enforcer.policy.rule_files import SYSTEM, find_exposed, hold_masked, own_files, refuse_service, rule_files
from enforcer.policy.run_request import (
    ANYWHERE,
    OPTIONS,
    HostPaths,
    RunRequest,
    is_allowed_by_layers,
    merge_settings,
    resolve_paths,
)
from enforcer.run.host import StandaloneHost
from enforcer.sandbox.system_paths import SYSTEM as SHOWN
from enforcer.sandbox.system_paths import contains, home_directories, refuse_workspace
from enforcer.system import linux
from enforcer.system.control_socket import control_path
from enforcer.system.errors import ExeatError, HostError, UsageError
from enforcer.system.state import journal_directory
from proxy.telemetry.visible import fitted, visible
from rules.explain.reasons import REASONS
from rules.matching.policy import Policy
from rules.problems import RuleFileError, quote
from rules.sandbox import SandboxSettings, SandboxUser, WorkspaceMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enforcer.policy.rule_files import LoadedRules
    from enforcer.run.dry_run import PlannedStep
    from enforcer.run.host import Host
    from enforcer.run.task import Result
    from proxy.telemetry.summary import Summary

_COUNTED = ", or leave `--metrics` out: `exeat up --metrics` serves the metrics of all tasks that run under it"
_LISTS: Final = ("hide", "protected", "caches", "devices")
_WORDS: Final = ("hostname", "timeout", "memory", "cpu", "processes", "files", "disk")
_USUAL = "/bin/sh"
_NONE = frozenset({"nologin", "false"})  # of accounts that nobody uses


# Each of these stands for a key of `sandbox` in a rule file
SANDBOX_OPTIONS: Final = (
    argument("--read", "PATH...", "show this file or directory to the task, read-only"),
    argument("--write", "PATH...", "let the task read and write this file or directory"),
    argument("--hide", "PATH...", "hide this path from the task, or `**/NAME` at any depth"),
    argument("--protect", "GLOB...", "require an approval to change these files of the workspace", dest="protected"),
    argument("--cache", "NAME=PATH...", "keep PATH of the sandbox between tasks, under this name", dest="caches"),
    argument(
        "--device", "NAME...", "give the task a device: `kvm`, `gpu`, or one device node of a GPU", dest="devices"
    ),
    Group(
        "",
        tuple(
            argument(f"--{mode}", "", says, dest="mode", action="store_const", const=mode)
            for mode, says in (
                (WorkspaceMode.REVIEW, "keep the task's changes to its workspace separate until they are accepted"),
                (WorkspaceMode.DIRECT, "apply the task's changes to its workspace at once"),
            )
        ),
    ),
    argument("--user", tuple(map(str, SandboxUser)), "user that the task sees itself as; it grants no rights"),
    argument("--hostname", "NAME", "host name in the sandbox (default: the task's name)"),
    argument("--timeout", "DURATION", "stop the task after this time: `90s`, `10m`, `2h`"),
    argument("--memory", "SIZE", "limit the memory of the whole task: `2GB`"),
    argument("--cpu", "CORES", "limit the processor cores of the whole task: `1.5`"),
    argument("--processes", "N", "limit the number of processes and threads"),
    argument("--files", "N", "limit the open files of each process"),
    argument("--disk", "SIZE", "limit what the task writes outside its workspace: `1GB`"),
)
SHELL_ARGUMENTS: Final = (
    RULES,
    argument("--task", "NAME", "name of the task, for rules and events (default: made from the command)"),
    LABEL,
    argument(
        "--workspace", "DIR", "directory that the task works in and may write (default: the current one)", type=str
    ),
    argument("--env", "NAME[=VALUE]...", "pass this environment variable of yours, or set it to VALUE"),
    WRITTEN_JOURNAL,
    metrics_option(" while the task runs", DEFAULT_METRICS),
    Group("sandbox (see `sandbox` in docs/reference/rules.md)", SANDBOX_OPTIONS),
    argument("--no-service", "", "run without the service, even if `exeat up` runs"),
    argument("--dry-run", "", "print every step of a start, without starting"),
    old_spelling("--plan", "--dry-run"),
    argument("--format", ("text", "json"), "output format of --dry-run", default="text"),
    argument("--quiet", "", "print no summary at the end"),
)
ARGUMENTS: Final = (
    *SHELL_ARGUMENTS,
    argument("command", "-- COMMAND [ARGUMENT...]", "command to run, with its arguments", nargs=argparse.REMAINDER),
)


def run(arguments: argparse.Namespace, system: Path = SYSTEM) -> int:
    """Run the task. The status is its own, or 124 to 127 (timeout(1), env(1)). `system`: for tests, not for users."""
    return end_as_task(perform(arguments, system, StandaloneHost()))


def perform(arguments: argparse.Namespace, system: Path, host: "Host") -> int:
    """Run the task on a host; how it ended is a wait status, as waitpid(2) has it."""
    try:
        request = make_run_request(arguments, system, host.read_rules)
        if arguments.dry_run:
            from enforcer.run.dry_run import planned_steps

            lines = planned_steps(request)
        else:
            from enforcer.run import task

            host.announce()
            result = task.run(request, host)
    except RuleFileError as error:
        print(error, file=sys.stderr)
        return 2 << 8
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status << 8
    except OSError as error:
        print(f"exeat: {error.strerror or error}", file=sys.stderr)
        return HostError.status << 8
    return _print_plan(lines, arguments.format) if arguments.dry_run else _report(result, quiet=arguments.quiet)


def _report(result: "Result", *, quiet: bool) -> int:
    """Say what there is to say of a run that is over, and give its wait status."""
    limits = (f"the task reached a limit: {said}" for said in result.limited)
    for said in (*result.problems, *limits, *result.workspace):
        print(f"exeat: {said}", file=sys.stderr)
    if not quiet:
        _summary(result)
    if result.cut_short:
        return TIMED_OUT << 8
    if result.status is None:
        return HostError.status << 8
    return result.status or (1 << 8 if result.problems else 0)


def _print_plan(lines: "Sequence[PlannedStep]", form: str) -> int:
    """Say what a start would do."""
    if form == "json":
        import json

        print(json.dumps([line._asdict() for line in lines], indent=2))
    else:
        width = max(len(line.where) for line in lines)
        print("\n".join(f"{line.where:<{width}}  {line.does}" for line in lines))
    return 0


def make_run_request(
    arguments: argparse.Namespace, system: Path, reading: "Callable[[Sequence[Path], Path], LoadedRules]"
) -> RunRequest:
    """Return what is asked for, under rules as `reading` has them. Raises ExeatError, RuleFileError; makes nothing."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise UsageError("no command to run; write it after `--`, as in `exeat run --rules web.yaml -- make`")
    name, labels = run_request.task_name(arguments.task, command[0]), run_request.task_labels(arguments.label)
    run_request.check_claims(name, labels, system)
    workspace = _directory(arguments.workspace or _current_directory(), "--workspace")
    files = rule_files(arguments.rules)
    policy, searched_paths, rules_fingerprint = reading([Path(path) for path in files], system)
    others = home_directories()
    refuse_workspace(workspace, os.path.expanduser("~"), others)
    settings, shown = choose_settings(arguments, policy)
    shown = add_repository(workspace, settings, policy, shown)
    writable = (workspace, *shown.write)
    rule_paths = (*searched_paths, *map(str, own_files()))  # by later runs, too
    if problems := find_exposed(rule_paths, writable):
        raise UsageError(problems[0])
    refuse_service(control_path(), writable)
    return RunRequest(
        argv=tuple(command),
        name=name,
        policy=policy,
        rules=files,
        workspace=workspace,
        labels=labels,
        system=system,
        searched_paths=searched_paths,
        fingerprint=rules_fingerprint,
        masked_files=hold_masked(rule_paths, writable),
        homes=others,
        settings=settings,
        read=shown.read,
        write=shown.write,
        hide=shown.hide,
        names=shown.names,
        env=tuple(arguments.env),
        journal=arguments.journal.absolute() if arguments.journal else None,
        metrics=open_metrics_port(arguments.metrics, _COUNTED) if arguments.metrics else None,
    )


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current directory does not exist any more: change to another one") from error


def _directory(path: str, option: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise UsageError(f"{option}: `{path}` is not a directory")
    return real


def open_metrics_port(address: str, otherwise: str = "") -> socket.socket:
    """Open the metrics port now, so that one that is taken is said before anything runs: with `otherwise`, if so."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):(\d{1,5})", address)
    if match is None or int(match[3]) > 0xFFFF:
        raise UsageError(f"--metrics: `{address}` is not an address; write HOST:PORT, as in {DEFAULT_METRICS}")
    host, port = match[1] or match[2] or "127.0.0.1", int(match[3])
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(place)
        server.listen(16)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = f"the metrics port `{address}` is in use: name another port with `--metrics HOST:PORT`{otherwise}"
            raise HostError(said) from error
        raise HostError(
            f"the metrics port `{address}` cannot be opened: {error.strerror}; choose another with --metrics"
        ) from error
    server.setblocking(False)
    return server


def _summary(result: "Result") -> None:
    from enforcer.cli.run import find_hints  # once the task has ended, nobody waits

    summary = result.summary
    said = "the gate was lost, and its counts with it" if summary is None else summary.describe()
    empty = summary is not None and summary.is_empty
    print(f"exeat: {said}", file=sys.stderr)
    said_more = () if summary is None else tuple(find_hints(summary, result.command))
    for hint in said_more:
        print(f"exeat: {hint}", file=sys.stderr)
    if empty and not result.limited and not said_more:
        return  # there is nothing to see
    elsewhere = "" if result.journal == journal_directory() else f"--journal {result.journal} "
    what = "what it came up against" if empty else "what was tried and why"
    print(f"exeat: see {what} with `exeat log {elsewhere}--task {result.task.id}`", file=sys.stderr)


def end_as_task(status: int) -> int:
    """End as the task did (a wait status): its exit status, or its signal on ourselves."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    number = -code
    linux.disable_core_dumps()  # of ours for a crash of the task's
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number


def choose_settings(arguments: argparse.Namespace, policy: Policy) -> tuple[SandboxSettings, HostPaths]:
    """Give the box and its places on this host. Raises UsageError for what can't be, or is past a layer."""
    searched_paths = _read_options(arguments)
    settings = merge_settings(policy, SandboxSettings(**searched_paths), searched_paths)
    if settings.devices:
        from enforcer.sandbox.devices import host_devices  # few tasks are given any

        settings = settings._replace(devices=host_devices(settings.devices))
    return settings, resolve_paths(
        settings, policy.floor, map(os.path.abspath, arguments.read), map(os.path.abspath, arguments.write)
    )


def add_repository(workspace: str, settings: SandboxSettings, policy: Policy, shown: HostPaths) -> HostPaths:
    """Show the repository of a workspace that is a worktree of one elsewhere; what is written directly may commit."""
    if not os.path.isfile(f"{workspace}/.git"):
        return shown
    from enforcer.workspace.repository import find_linked_repository  # few workspaces are

    found = find_linked_repository(workspace, partial(is_allowed_by_layers, policy.floor))
    written = () if settings.workspace is WorkspaceMode.REVIEW else found.written
    write = {*shown.write, *written}
    return shown._replace(read=tuple(sorted({*shown.read, *found.shown} - write)), write=tuple(sorted(write)))


def _read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the options into fields of a `SandboxSettings`: those that were given."""
    found: dict[str, Any] = {}
    if arguments.mode is not None:
        found["workspace"] = arguments.mode
    if arguments.user is not None:
        found["user"] = SandboxUser(arguments.user)
    if taken := [entry for entry in arguments.env if "=" not in entry]:
        found["keep"] = tuple(taken)
    if given := [entry.partition("=")[::2] for entry in arguments.env if "=" in entry]:
        found["variables"] = tuple(given)
    for name in _LISTS:
        if entries := getattr(arguments, name):
            found[name] = tuple(sorted({_read(name, entry) for entry in entries}))
    for name in _WORDS:
        if (text := getattr(arguments, name)) is not None:
            found[name] = _read(name, text)
    return found


def _read(name: str, text: str) -> Any:
    """Read one option's value as rule files have it. Raises UsageError."""
    from rules.loading import sandbox_schema as grammar  # few starts have such an option
    from rules.loading.fields import parse_duration
    from rules.sandbox import parse_device

    parsers: dict[str, Callable[[str], Any]] = {
        "hide": lambda path: grammar.parse_hidden(path if path.startswith(ANYWHERE) else os.path.abspath(path)),
        "protected": grammar.parse_protected,
        "caches": _cache,
        "devices": parse_device,
        "hostname": grammar.parse_hostname,
        "timeout": parse_duration,
        **grammar.LIMITS,
    }
    if not text:
        raise UsageError(f"{OPTIONS[name]} has no value")
    try:
        return parsers[name](text)
    except ValueError as error:
        raise UsageError(f"{OPTIONS[name]}: {error}") from None


def _cache(text: str) -> tuple[str, str]:
    from rules.loading.fields import parse_slug
    from rules.loading.sandbox_schema import parse_cache_path

    name, _, path = text.partition("=")
    home = os.path.expanduser("~")
    if path.startswith(f"{home}/"):
        path = "~" + path.removeprefix(home)  # a shell has written it out, and the task's own home is meant
    if not name or not path:
        raise ValueError(f"{quote(text)} is not NAME=PATH: write it as in `pip=~/.cache/pip`")
    return parse_slug(name), parse_cache_path(path)


def run_shell(arguments: argparse.Namespace, system: Path = SYSTEM) -> int:
    """Run the shell; the exit status is its own, or as of `exeat run`. `system`: for tests, not for users."""
    if not (arguments.dry_run or os.isatty(0)):
        print("exeat: `exeat shell` needs a terminal: run a script with `exeat run -- sh SCRIPT`", file=sys.stderr)
        return 2
    shell = choose_shell(os.environ.get("SHELL", ""), (*arguments.read, arguments.workspace or os.getcwd()))
    arguments.command = ["--", shell, "-i"]
    arguments.env = [*arguments.env, f"SHELL={shell}"]
    return run(arguments, system)


def choose_shell(preferred: str, shown: "tuple[str, ...]") -> str:
    """Return the preferred shell if the sandbox shows it, otherwise `/bin/sh`."""
    if not os.path.isabs(preferred) or not os.access(preferred, os.X_OK) or os.path.basename(preferred) in _NONE:
        return _USUAL
    places = (*SHOWN, *map(os.path.realpath, shown))
    is_shown = all(any(contains(place, path) for place in places) for path in (preferred, os.path.realpath(preferred)))
    return preferred if is_shown else _USUAL


_WIDEST: Final = 60  # columns of a host's name
# A namespace, a mount or another root is what sandboxes of agents, browsers and build tools begin with.
_OWN_SANDBOX: Final = frozenset(
    ["unshare", "clone", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen"]
)
# How a program switches its own sandbox off, by the name of its command; the source is beside each.
_SWITCHES: Final = {
    "claude": 'its setting `{"sandbox": {"enabled": false}}`',  # code.claude.com/docs/en/settings, "sandbox settings"
    "codex": "`codex --sandbox danger-full-access`",  # developers.openai.com/codex/concepts/sandboxing
    # geminicli.com/docs/cli/sandbox and its sandboxConfig.ts: the variable goes before option and settings
    "gemini": "`GEMINI_SANDBOX=false gemini`",
    "qwen": "`QWEN_SANDBOX=false qwen`",  # the same in QwenLM/qwen-code, docs/users/features/sandbox.md
    "chromium": "`--no-sandbox`",  # chromium/src, sandbox/policy/switches.cc
    "google-chrome": "`--no-sandbox`",
    # bazel.build/docs/sandboxing, "Rule execution failures"
    "bazel": "`--spawn_strategy=local`, and `--strategy=Genrule=local` for genrules",
    "nix": "`--option sandbox false`",  # nix.dev/manual/nix, nix.conf(5): `sandbox`
}


def find_hints(summary: "Summary", command: str) -> Iterator[str]:
    """Give each hint as a sentence. `command` is what the task ran."""
    for place, reason in zip(summary.blocked_places.first, summary.blocked_for, strict=False):
        yield f"{fitted(visible(place), _WIDEST)} was blocked: {REASONS[reason].meaning}"
    calls = sorted(_OWN_SANDBOX.intersection(summary.calls))
    if calls:
        said = _SWITCHES.get(os.path.basename(command), "its own manual says how (docs/reference/sandbox.md has some)")
        what = "the task is in a sandbox already and can't make one of its own inside; switch its own off"
        yield f"`{calls[0]}` was refused: {what}: {said}"
    if "socket" in summary.calls:
        what = "only TCP and UDP leave a sandbox: ping(8) and raw sockets don't work; `curl` tries a connection"
        yield f"`socket` was refused: {what}"
    if summary.dropped:
        records = "record" if summary.dropped == 1 else "records"
        limits = "it sent more than is kept (docs/reference/agent-telemetry.md)"
        yield f"{summary.dropped} {records} of its own telemetry dropped: {limits}"
