"""urllib: JSON of what came of each URL. Run with URLs."""

import hashlib
import json
import sys
import urllib.error
import urllib.request

for url in sys.argv[1:]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            print(json.dumps([answer.status, hashlib.sha256(answer.read()).hexdigest()]))
    except urllib.error.HTTPError as error:
        print(json.dumps([error.code, error.reason, error.headers["X-Exeat-Decision"], json.load(error)["reason"]]))
