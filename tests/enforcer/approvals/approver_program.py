"""Speak to the registry as the commands do, without a start for each; a line of JSON is what came of it.

`approver_program.py '{"WORD": [{"vote": "approve", "why": "fine"}]}'` watches what is asked and answers it at once; without
words it asks what its standard input says.
"""

import json
import sys

from enforcer.approvals import client
from enforcer.system.errors import ExeatError


def asked(what):
    try:
        return {"answers": client.ask(what)}
    except ExeatError as error:
        return {"refused": str(error)}


def watch(answers):
    for told in client.follow({"what": "watch"}):
        if told["kind"] != "asked":
            continue
        approval = told["approval"]
        word = next(word for word in answers if word in approval["line"])
        for answer in answers[word]:
            found = asked({"what": "answer", "id": approval["id"], **answer})
            text = found["refused"] if "refused" in found else found["answers"][0]["text"]
            print(json.dumps({"word": word, "counts": "answers" in found, "text": text}), flush=True)


if len(sys.argv) > 1:
    watch(json.loads(sys.argv[1]))
else:
    for line in sys.stdin:
        print(json.dumps(asked(json.loads(line))), flush=True)
