"""Every event that a test has the gate tell, held against the schema that `exeat schema --event` prints.

Recorders of this process are listened to; journals that other processes wrote are held to it where tests read them.
"""

import json
import sys
from functools import cache

_wrong: list[str] = []


@cache
def _check():
    import fastjsonschema

    from proxy.telemetry.schema import event_schema

    return fastjsonschema.compile(event_schema(closed=True))


def problem(event):
    """What of an event is not as the schema says; empty if nothing."""
    import fastjsonschema

    try:
        _check()(event)
    except fastjsonschema.JsonSchemaValueException as error:
        return f"{event.get('kind')}: {error.message}"
    return ""


def hold(events):
    """Fail the test that is under way if an event is not as the schema says; return them as they are."""
    wrong = {problem(event) for event in events} - {""}
    assert wrong == set()
    return events


def listen():
    """Look from now on at each event that a recorder of this process tells, if it has any."""
    recorder = sys.modules.get("proxy.sandbox.recorder")
    encode = getattr(recorder, "encode", None)
    if encode is None or hasattr(encode, "listened_to"):
        return

    def listening(event):
        line = encode(event)
        if said := problem(json.loads(line)):
            _wrong.append(said)
        return line

    listening.listened_to = True
    recorder.encode = listening


def heard():
    """What was wrong since this was asked last."""
    found, _wrong[:] = list(_wrong), []
    return found
