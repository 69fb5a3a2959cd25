"""Watch what is asked and answer it at once: `answering.py '{"WORD": [{"vote": "approve", "why": "fine"}]}'`.

It speaks to the registry as the commands do, without a start for each. What came of each answer is a line of JSON.
"""

import json
import sys

from enforcer.approvals import talking
from enforcer.errors import ExeatError


def main(answers):
    for told in talking.follow({"what": "watch"}):
        if told["kind"] != "asked":
            continue
        approval = told["approval"]
        word = next(word for word in answers if word in approval["line"])
        for answer in answers[word]:
            try:
                (said,) = talking.ask({"what": "answer", "id": approval["id"], **answer})
                counts = True
            except ExeatError as error:
                said, counts = {"text": str(error)}, False
            print(json.dumps({"word": word, "counts": counts, "text": said["text"]}), flush=True)


main(json.loads(sys.argv[1]))
