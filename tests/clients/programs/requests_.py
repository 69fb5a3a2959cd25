"""requests: the same, and an upload of a generator, which goes out in chunks."""

import hashlib
import json
import sys

import requests

with requests.Session() as session:
    for url in sys.argv[1:]:
        answer = session.get(url, timeout=30)
        if answer.ok:
            print(json.dumps([answer.status_code, hashlib.sha256(answer.content).hexdigest()]))
        else:
            shown = [answer.status_code, answer.reason, answer.headers["X-Exeat-Decision"], answer.json()["reason"]]
            print(json.dumps(shown))
    pieces = (b"x" * 65536 for _ in range(64))
    print(json.dumps(session.post("https://www.open.example/upload", data=pieces, timeout=30).json()))
