"""WebSocket with `websockets`: messages of many sizes, both ways at once; how it ends; and one that is refused."""

import asyncio
import hashlib
import json
import sys

import websockets


async def main(url, limited, closed, denied) -> None:
    async with websockets.connect(url, max_size=None) as connection:
        for size in (0, 1, 125, 126, 65535, 65536, 5_000_000):
            sent = hashlib.shake_256(b"%d" % size).digest(size)
            await connection.send(sent)
            assert await connection.recv() == sent, size
        messages = [f"message {number}" for number in range(500)]
        await asyncio.gather(*map(connection.send, messages))
        got = [await connection.recv() for _ in messages]
        assert got == messages
        await (await connection.ping())
        await connection.send("close 4001")
        try:
            await connection.recv()
        except websockets.ConnectionClosed as error:
            print(json.dumps([error.rcvd.code, error.rcvd.reason]))
    async with websockets.connect(limited, compression=None) as connection:
        try:
            for _ in range(20):
                await connection.send(hashlib.shake_256(b"x").digest(5000))
                await connection.recv()
        except websockets.ConnectionClosed as error:
            print(json.dumps([error.rcvd.code, error.rcvd.reason]))
    for refused in (closed, denied):
        try:
            await websockets.connect(refused)
        except websockets.InvalidStatus as error:
            answer = error.response
            problem = json.loads(answer.body)
            said = [str(error), answer.reason_phrase, answer.headers["X-Exeat-Decision"], problem["reason"]]
            print(json.dumps([*said, problem["title"]]))


asyncio.run(main(*sys.argv[1:]))
