"""Uploads that are refused at their head while the client goes on sending: each has to hear why. Run with a URL."""

import asyncio
import json
import sys
import urllib.error
import urllib.request

import aiohttp
import httpx
import requests

URL, SIZE = sys.argv[1], 24 << 20
CONTENT = bytes(SIZE)


def pieces():
    for _ in range(SIZE >> 16):
        yield bytes(65536)


async def with_aiohttp() -> int:
    async with aiohttp.ClientSession() as session, session.post(URL, data=CONTENT) as answer:
        return answer.status


def with_urllib() -> int:
    try:
        urllib.request.urlopen(urllib.request.Request(URL, CONTENT), timeout=30)
    except urllib.error.HTTPError as error:
        return error.code
    return 0


def with_httpx(*, http2: bool) -> int:
    with httpx.Client(http2=http2, timeout=30) as client:
        return client.post(URL, content=CONTENT).status_code


TRIES = {
    "urllib": with_urllib,
    "requests": lambda: requests.post(URL, data=CONTENT, timeout=30).status_code,
    "requests, in chunks": lambda: requests.post(URL, data=pieces(), timeout=30).status_code,
    "httpx": lambda: with_httpx(http2=False),
    "httpx, HTTP/2": lambda: with_httpx(http2=True),
    "aiohttp": lambda: asyncio.run(with_aiohttp()),
}
shown = {}
for name, attempt in TRIES.items():
    try:
        shown[name] = attempt()
    except Exception as error:  # noqa: BLE001  which of them is what is asked
        shown[name] = f"{type(error).__name__}: {error}"
print(json.dumps(shown))
