"""aiohttp: the same, a WebSocket, and one that is refused."""

import asyncio
import hashlib
import json
import sys

import aiohttp


async def main(socket, closed, *urls) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        for url in urls:
            async with session.get(url) as answer:
                if answer.ok:
                    print(json.dumps([answer.status, hashlib.sha256(await answer.read()).hexdigest()]))
                else:
                    problem = await answer.json(content_type="application/problem+json")
                    told = answer.headers["X-Exeat-Decision"]
                    print(json.dumps([answer.status, answer.reason, told, problem["reason"]]))
        async with session.ws_connect(socket) as connection:
            await connection.send_bytes(b"x" * 300_000)
            print(json.dumps(len(await connection.receive_bytes())))
        try:
            await session.ws_connect(closed)
        except aiohttp.WSServerHandshakeError as error:
            print(json.dumps([error.status, error.message, error.headers["X-Exeat-Decision"]]))


asyncio.run(main(*sys.argv[1:]))
