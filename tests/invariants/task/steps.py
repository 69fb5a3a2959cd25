"""A task that does one thing for each line it is told, so that a test and what it tests keep in step."""

import json
import sys

from .attempts import reason


def serve(*functions):
    """Read `[step, arguments...]` a line and answer with what the step returned, until the input ends."""
    steps = {function.__name__: function for function in functions}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(steps[name](*arguments)), flush=True)


def tried(function, *arguments):
    """Return what a function returned, or its error's name."""
    try:
        return function(*arguments)
    except OSError as error:
        return reason(error)
