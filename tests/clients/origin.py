"""A WebSocket server and a gRPC server, of the libraries that most have, as one process among the lab's origins."""

import asyncio
import hashlib
import re
import ssl
import sys
from pathlib import Path

import grpc
import websockets

_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\n", re.DOTALL)


async def _socket(connection) -> None:
    """Give back what comes, and end as it is told."""
    async for message in connection:
        if message == "close 4001":
            await connection.close(4001, "as you wish")
        await connection.send(message)


async def _unary(request: bytes, context) -> bytes:
    context.set_trailing_metadata((("x-size", str(len(request))), ("x-sum-bin", hashlib.sha256(request).digest())))
    return request


async def _each(requests, context):
    async for request in requests:
        yield request


async def _sum(requests, context) -> bytes:
    digest = hashlib.sha256()
    async for request in requests:
        digest.update(request)
    return digest.digest()


async def _many(request: bytes, context):
    for number in range(int(request)):
        yield b"%d" % number


async def _fail(request: bytes, context) -> bytes:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 50% of \u00fcber", (("x-why", "because"),))


class _Anything(grpc.GenericRpcHandler):
    """Every method, in whatever service."""

    def service(self, details):
        make = {
            "Unary": lambda: grpc.unary_unary_rpc_method_handler(_unary),
            "Each": lambda: grpc.stream_stream_rpc_method_handler(_each),
            "Sum": lambda: grpc.stream_unary_rpc_method_handler(_sum),
            "Many": lambda: grpc.unary_stream_rpc_method_handler(_many),
            "Fail": lambda: grpc.unary_unary_rpc_method_handler(_fail),
        }
        return make[details.method.rpartition("/")[2]]()


async def main(certificate: str, websocket_port: str, blocks: list[bytes], grpc_port: str) -> None:
    """Listen, until killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with websockets.serve(_socket, "0.0.0.0", int(websocket_port), ssl=context, max_size=None):
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        server.add_generic_rpc_handlers((_Anything(),))
        server.add_secure_port(f"0.0.0.0:{grpc_port}", grpc.ssl_server_credentials([(blocks[0], b"".join(blocks[1:]))]))
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    own, port, file, other = sys.argv[1:]
    asyncio.run(main(own, port, [match[0] for match in _PEM.finditer(Path(file).read_bytes())], other))
