"""What tests of limits share: what runs them, and where each is looked up in what was told."""

PYTHON = "/usr/bin/python3"


def told(someone, reason):
    """Every event of a limit that was reached for this reason."""
    return [event for event in someone.events() if event["kind"] == "task.limited" and event["reason"] == reason]
