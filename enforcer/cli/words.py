"""What more than one command reads from its arguments, or writes."""

import argparse
from datetime import date


def day(text: str) -> date:
    """Read a date that is an argument."""
    from rules.loading import values

    try:
        return values.day(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def several(number: int, what: str) -> str:
    """Say how many of something that has an `s` when there are several, or an `es`: sandboxes."""
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('x') else 's'}"
