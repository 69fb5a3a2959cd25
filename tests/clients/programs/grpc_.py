"""gRPC: calls of every kind, with trailers and statuses; streams in step; and calls that the rules refuse."""

import hashlib
import json
import queue
import sys

import grpc

PLACE = sys.argv[1]
REFUSED = ("/lab.Admin/Unary", "/lab.Admin/Each", "/lab.Admin/Sum", "/lab.Admin/Many")


def show(*values: object) -> None:
    print(json.dumps(values), flush=True)


def refused(call) -> None:
    try:
        answer = call()
        if not isinstance(answer, bytes):
            list(answer)
        show("not refused")
    except grpc.RpcError as error:
        told = dict(error.trailing_metadata() or ())
        show(error.code().name, error.details(), told.get("x-exeat-decision", ""))


def main() -> None:
    size = [("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(PLACE, grpc.ssl_channel_credentials(), size) as channel:
        large = bytes(range(251)) * 40_000
        answer, call = channel.unary_unary("/lab.Echo/Unary").with_call(large, timeout=30)
        trailers = dict(call.trailing_metadata())
        show(answer == large, trailers["x-size"], trailers["x-sum-bin"] == hashlib.sha256(large).digest())

        outgoing = queue.SimpleQueue()
        calls = channel.stream_stream("/lab.Echo/Each")(iter(outgoing.get, None), timeout=30)
        heard = []
        for number in range(5):  # each waits for the answer to the one before it
            outgoing.put(b"%d" % number)
            heard.append(int(next(calls)))
        outgoing.put(None)
        show(heard, list(calls), calls.code().name)

        pieces = [b"x" * 100_000] * 100
        total = channel.stream_unary("/lab.Echo/Sum")(iter(pieces), timeout=30)
        show(total == hashlib.sha256(b"".join(pieces)).digest())
        show(sum(int(one) for one in channel.unary_stream("/lab.Echo/Many")(b"1000", timeout=30)))

        try:
            channel.unary_unary("/lab.Echo/Fail")(b"", timeout=30)
        except grpc.RpcError as error:
            show(error.code().name, error.details(), dict(error.trailing_metadata())["x-why"])

        refused(lambda: channel.unary_unary(REFUSED[0])(b"x", timeout=30))
        refused(lambda: channel.stream_stream(REFUSED[1])(iter([b"x"] * 50), timeout=30))
        refused(lambda: channel.stream_unary(REFUSED[2])(iter(pieces), timeout=30))
        refused(lambda: channel.unary_stream(REFUSED[3])(b"3", timeout=30))
        show(channel.unary_unary("/lab.Limited/Unary")(b"x", timeout=30) == b"x")
        refused(lambda: channel.unary_unary("/lab.Limited/Unary")(b"x", timeout=30))
    for place in sys.argv[2:]:
        with grpc.secure_channel(place, grpc.ssl_channel_credentials()) as channel:
            refused(lambda: channel.unary_unary("/lab.Echo/Unary")(b"x", timeout=30))


main()
