"""Server-sent events, each of which comes only when somebody has asked for it: what waits anywhere on the way never ends.

Run with the URL of the stream and the one that asks for the next event.
"""

import json
import sys
import urllib.request

heard = []
with urllib.request.urlopen(sys.argv[1], timeout=30) as stream:
    while line := stream.readline():
        if line.startswith(b"data: "):
            heard.append(line[6:].decode().strip())
            if not line.endswith(b"9\n"):
                urllib.request.urlopen(sys.argv[2], timeout=30).close()
print(json.dumps(heard))
