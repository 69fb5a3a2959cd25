"""httpx over HTTP/2, many requests at once on one connection."""

import asyncio
import hashlib
import json
import sys

import httpx


async def main(urls) -> None:
    async with httpx.AsyncClient(http2=True, timeout=30) as client:
        for answer in await asyncio.gather(*(client.get(url) for url in urls)):
            if answer.is_success:
                print(json.dumps([answer.status_code, hashlib.sha256(answer.content).hexdigest(), answer.http_version]))
            else:
                shown = [answer.status_code, answer.headers["x-exeat-decision"], answer.json()["reason"]]
                print(json.dumps([*shown, answer.http_version]))


asyncio.run(main(sys.argv[1:]))
