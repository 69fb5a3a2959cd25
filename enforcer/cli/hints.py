"""Hints at the end of a run: problems of the task that the sandbox caused, where its programs don't show it."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from proxy.telemetry.visible import fitted, visible
from rules.explain.reasons import REASONS

if TYPE_CHECKING:
    from proxy.telemetry.summary import Summary

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
