"""What two policies say besides their rules: settings, layers, what tasks run in and which programs are held back."""

from typing import TYPE_CHECKING, NamedTuple

from rules.loading.sandbox_layers import differences
from rules.settings import Settings

if TYPE_CHECKING:
    from rules.limits import ApprovalTerms
    from rules.matching.policy import Policy
    from rules.sandbox import Command


class Setting(NamedTuple):
    """A setting that differs."""

    key: str
    was: str | None  # None: not set
    now: str | None


def settings(old: "Policy", new: "Policy") -> tuple[Setting, ...]:
    """List what differs of settings, layers, boxes and commands."""
    was, now = (", ".join(layers(policy)) or "none" for policy in (old, new))
    voting = [Setting("layer", was, now)] if was != now else []
    pairs = zip(Settings._fields, old.settings, new.settings, strict=True)
    found = [Setting(key, _text(was), _text(now)) for key, was, now in pairs if was != now]
    return (*voting, *found, *_boxes(old, new))


def _boxes(old: "Policy", new: "Policy") -> list[Setting]:
    """Compare what tasks run in, what layers keep it to, and which programs are held back."""
    found = [Setting(*each) for each in differences(old.box, new.box)]
    found += [Setting(f"layers' {key}", was, now) for key, was, now in differences(old.floor.box, new.floor.box)]
    was, now = ({command.cite: _command(command) for command in policy.commands} for policy in (old, new))
    for cite in sorted({*was, *now}):
        if was.get(cite) != now.get(cite):
            found.append(Setting(f"command {cite}", was.get(cite), now.get(cite)))
    return found


def _command(command: "Command") -> str:
    said = f" for {command.for_}" if command.for_ is not None else ""
    asks = "" if command.approval is None else f" with approval {terms_of(command.approval)}"
    return f"{command.action} {' '.join(command.words)}{said}{asks}"


def terms_of(approval: "ApprovalTerms") -> str:
    """Say what an approval takes, for comparison: every term that is set."""
    return ", ".join(f"{key} {value}" for key, value in approval._asdict().items() if value is not None)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def layers(policy: "Policy") -> list[str]:
    """Name the files that vote alone: what they leave unsaid counts too."""
    return sorted(f"{layer.kind} {layer.name} ({layer.mode})" for layer in policy.layers)
