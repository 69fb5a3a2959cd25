"""ClientHellos taken apart and put together otherwise (RFC 8446 sections 4.1.2 and 5.1)."""


def one_byte_segments(data):
    """Return the bytes one by one: each goes in a packet of its own."""
    return [data[at : at + 1] for at in range(len(data))]


def several_records(data, size=7):
    """Return the handshake message in records of a few bytes each."""
    payload = data[5:]
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    return [b"".join(data[:3] + len(piece).to_bytes(2) + piece for piece in pieces)]


def with_encrypted_client_hello(data):
    """Return the hello with an extension 0xfe0d (RFC 9849), as an outer hello of some other name has it."""
    body = bytes([0]) + b"\0\1\0\1" + b"\7" + (32).to_bytes(2) + bytes(range(32)) + (144).to_bytes(2) + b"\xaa" * 144
    return [_extended(data, 0xFE0D, body)]


def _extended(data, kind, body):
    hello = data[9:]  # behind the headers of the record and of the message
    at = 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at]
    extensions = hello[at + 2 :] + kind.to_bytes(2) + len(body).to_bytes(2) + body
    hello = hello[:at] + len(extensions).to_bytes(2) + extensions
    message = data[5:6] + len(hello).to_bytes(3) + hello
    return data[:3] + len(message).to_bytes(2) + message
