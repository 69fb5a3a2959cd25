"""Pages of the web origin of the lab, the same over HTTP/1.1 and HTTP/2.

/echo            the request as JSON: method, path, headers, body's size and SHA-256, SNI, addresses
/bytes/N         N bytes of a pattern, with a length
/chunked/N       N bytes, without one
/slow/N/SECONDS  N short pieces, SECONDS apart
/events/N        N server-sent events
/steps/KEY/N     N server-sent events; each after the first waits for a request to /step/KEY
/reset/N         N bytes of a longer body, then a reset of the connection
/cut/N           the same, then an ordinary end of the connection
/upload          reads the body; answers with its size and SHA-256
/status/N        an empty answer with that status
/redirect?to=URL
/files/PATH      a file of the lab's `files` directory, or a directory's index.html; with ranges
/REPOSITORY/info/refs, git-upload-pack, git-receive-pack   git over smart HTTP
anything else    200 and a line of text
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from . import files, git_server

PATTERN = bytes(range(256)) * 256  # 64 KiB


@dataclass
class Request:
    """One request of any HTTP version."""

    method: str
    target: str
    authority: str
    headers: list[tuple[str, str]]
    version: str
    sni: str | None
    destination: tuple[str, int]
    client: tuple[str, int]
    body: AsyncIterator[bytes] = field(repr=False)

    def header(self, name: str) -> str:
        """Return the first header of that name, or an empty string."""
        return next((value for key, value in self.headers if key.lower() == name), "")


class Answer(Protocol):
    """Answer of a page: start, any number of sends, then end, reset or cut."""

    async def start(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    async def send(self, data: bytes) -> None: ...
    async def end(self) -> None: ...
    async def reset(self) -> None: ...
    async def cut(self) -> None: ...


async def serve(request: Request, answer: Answer) -> None:
    """Answer one request."""
    path = urlsplit(request.target).path
    first, *rest = path.strip("/").split("/")
    if git_server.is_git(path):
        await git_server.serve(request, answer)
    elif first == "files":
        await files.serve(request, answer)
    elif first in _PAGES:
        try:
            await _PAGES[first](request, answer, *map(float, rest))
        except (TypeError, ValueError) as error:
            await whole(answer, 400, f"{error}\n".encode())
    else:
        await whole(answer, 200, f"the lab's origin for {request.authority}\n".encode())


async def whole(answer: Answer, status: int, content: bytes, kind: str = "text/plain", **headers: str) -> None:
    """Send a short answer."""
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    await answer.start(status, [("content-type", kind), ("content-length", str(len(content))), *named])
    await answer.send(content)
    await answer.end()


def pieces(size: int) -> list[bytes]:
    """Return `size` bytes of the pattern, in pieces."""
    whole_ones, left = divmod(size, len(PATTERN))
    return [PATTERN] * whole_ones + [PATTERN[:left]] * bool(left)


async def _echo(request: Request, answer: Answer) -> None:
    size, digest = await _read(request)
    content = {
        "method": request.method,
        "target": request.target,
        "authority": request.authority,
        "headers": request.headers,
        "version": request.version,
        "sni": request.sni,
        "destination": request.destination,
        "client": request.client,
        "body": {"size": size, "sha256": digest},
    }
    await whole(answer, 200, json.dumps(content).encode() + b"\n", "application/json")


async def _upload(request: Request, answer: Answer) -> None:
    size, digest = await _read(request)
    await whole(answer, 200, json.dumps({"size": size, "sha256": digest}).encode() + b"\n", "application/json")


async def _read(request: Request) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    async for data in request.body:
        size += len(data)
        digest.update(data)
    return size, digest.hexdigest()


async def _bytes(_: Request, answer: Answer, size: float) -> None:
    await answer.start(200, [("content-type", "application/octet-stream"), ("content-length", str(int(size)))])
    for piece in pieces(int(size)):
        await answer.send(piece)
    await answer.end()


async def _chunked(_: Request, answer: Answer, size: float) -> None:
    await answer.start(200, [("content-type", "application/octet-stream")])
    for piece in pieces(int(size)):
        await answer.send(piece)
    await answer.end()


async def _slow(_: Request, answer: Answer, count: float, seconds: float) -> None:
    await answer.start(200, [("content-type", "text/plain")])
    for number in range(int(count)):
        await answer.send(f"{number}\n".encode())
        await asyncio.sleep(seconds)
    await answer.end()


async def _events(_: Request, answer: Answer, count: float) -> None:
    await answer.start(200, [("content-type", "text/event-stream"), ("cache-control", "no-store")])
    for number in range(int(count)):
        await answer.send(f"id: {number}\ndata: event {number}\n\n".encode())
        await asyncio.sleep(0.05)
    await answer.end()


_steps: dict[float, asyncio.Semaphore] = {}


async def _in_steps(_: Request, answer: Answer, key: float, count: float) -> None:
    await answer.start(200, [("content-type", "text/event-stream"), ("cache-control", "no-store")])
    step = _steps[key] = asyncio.Semaphore(0)
    for number in range(int(count)):
        if number:
            await step.acquire()
        await answer.send(f"id: {number}\ndata: event {number}\n\n".encode())
    await answer.end()


async def _step(_: Request, answer: Answer, key: float) -> None:
    _steps[key].release()
    await whole(answer, 200, b"")


async def _reset(_: Request, answer: Answer, size: float) -> None:
    await _part_of_a_body(answer, int(size))
    await answer.reset()


async def _cut(_: Request, answer: Answer, size: float) -> None:
    await _part_of_a_body(answer, int(size))
    await answer.cut()


async def _part_of_a_body(answer: Answer, size: int) -> None:
    await answer.start(200, [("content-type", "application/octet-stream"), ("content-length", str(size * 2 + 1))])
    for piece in pieces(size):
        await answer.send(piece)
    await asyncio.sleep(0.1)  # so that the sent bytes arrive first: a reset discards those under way


async def _status(_: Request, answer: Answer, status: float) -> None:
    await whole(answer, int(status), b"")


async def _redirect(request: Request, answer: Answer) -> None:
    (to,) = parse_qs(urlsplit(request.target).query)["to"]
    await whole(answer, 302, b"", location=unquote(to))


_PAGES: dict[str, Callable[..., Awaitable[None]]] = {
    "echo": _echo,
    "upload": _upload,
    "bytes": _bytes,
    "chunked": _chunked,
    "slow": _slow,
    "events": _events,
    "steps": _in_steps,
    "step": _step,
    "reset": _reset,
    "cut": _cut,
    "status": _status,
    "redirect": _redirect,
}
