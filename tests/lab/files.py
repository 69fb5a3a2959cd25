"""Static files over HTTP, with ranges and directory indexes."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(os.environ.get("LAB_FILES", "/nonexistent"))
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_KINDS = {".html": "text/html", ".json": "application/json", ".gz": "application/gzip", "": "application/json"}
_PIECE = 1 << 16


def find(target: str) -> Path | None:
    """Return the file of a target below the root, or the `index.html` of a directory."""
    wanted = (ROOT / unquote(urlsplit(target).path).removeprefix("/files").lstrip("/")).resolve()
    wanted = wanted / "index.html" if wanted.is_dir() else wanted
    return wanted if wanted.is_relative_to(ROOT.resolve()) and wanted.is_file() else None


def part(wanted: str, size: int) -> range | None:
    """Return the bytes that a `Range` header selects (RFC 9110 section 14.2); None if none of them exist."""
    match = _RANGE.fullmatch(wanted)
    if match is None or match[0] == "bytes=-":
        return range(size)
    first, last = match.groups()
    found = range(size)[int(first) : int(last) + 1 if last else None] if first else range(size)[-int(last) :]
    return found or None


async def serve(request, answer) -> None:
    """Answer a request for a file."""
    path = find(request.target)
    if path is None:
        await answer.start(404, [("content-length", "0")])
        await answer.end()
        return
    size = path.stat().st_size
    wanted = request.header("range")
    found = part(wanted, size)
    if found is None:
        await answer.start(416, [("content-length", "0"), ("content-range", f"bytes */{size}")])
        await answer.end()
        return
    headers = [
        ("content-type", _KINDS.get(path.suffix, "application/octet-stream")),
        ("content-length", str(len(found))),
        ("accept-ranges", "bytes"),
    ]
    if wanted:
        headers.append(("content-range", f"bytes {found.start}-{found.stop - 1}/{size}"))
    await answer.start(206 if wanted else 200, headers)
    if request.method != "HEAD":
        with path.open("rb") as file:
            file.seek(found.start)
            left = len(found)
            while left and (data := file.read(min(_PIECE, left))):
                await answer.send(data)
                left -= len(data)
    await answer.end()
