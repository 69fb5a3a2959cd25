"""Runs commands as it is asked to, outside or inside a sandbox, and tells how long each took: a JSON object a line.

Standard library alone, as it is copied into a sandbox. Asked: `argv`, in which `{here}` is a fresh directory, and
`environment`, more variables. Told: `seconds`, and `files` and `bytes` that are in the directory then, or `error`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_LONGEST = 50.0  # seconds
_SAID = 1000  # characters of a failure


def run(argv, environment):
    """Run one to its end in a fresh directory, which is removed after the clock has stopped."""
    here = Path(tempfile.mkdtemp(prefix="bench-", dir="."))
    try:
        words = [word.replace("{here}", str(here.absolute())) for word in argv]
        pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        began = time.monotonic()
        done = subprocess.run(words, env={**os.environ, **environment}, timeout=_LONGEST, check=False, **pipe)
        took = time.monotonic() - began
        if done.returncode:
            return {
                "error": f"{words[0]} ended with {done.returncode}: {done.stdout.decode(errors='replace')[-_SAID:]}"
            }
        files = [path for path in here.rglob("*") if path.is_file() and not path.is_symlink()]
        return {"seconds": took, "files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    finally:
        shutil.rmtree(here, ignore_errors=True)


def main():
    for line in sys.stdin:
        wish = json.loads(line)
        try:
            answer = run(wish["argv"], wish["environment"]) if wish["what"] == "run" else {}
        except (OSError, subprocess.TimeoutExpired) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
