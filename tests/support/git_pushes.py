"""Bodies of pushes, as git writes them (gitprotocol-pack(5))."""

from proxy.event_loop.turn import run_at_once

ZERO, A, B = "0" * 40, "a" * 40, "b" * 40
MAIN = "refs/heads/main"
PACK = b"PACK\0\0\0\2\0\0\0\0" + bytes(range(256))
CAPABILITIES = "report-status-v2 side-band-64k object-format=sha1 agent=git/2.39.5"


def line(text):
    data = text if isinstance(text, bytes) else text.encode()
    return b"%04x%b" % (len(data) + 4, data)


def push(*commands, after=b"0000", options=None):
    """Write a push; with `options`, be there any or not, as `git push -o` does."""
    first, *rest = commands
    if options is not None:
        after += b"".join(map(line, options)) + b"0000"
    more = "" if options is None else " push-options"
    return line(f"{first}\0 {CAPABILITIES}{more}") + b"".join(map(line, rest)) + after


def certificate(
    *commands,
    signature="-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n",
    more="",
    capabilities=CAPABILITIES,
):
    header = f"certificate version 0.1\npusher Ann <a@a> 1 +0000\npushee https://h/r\nnonce 1-2\n{more}"
    text = header + "\n" + "".join(f"{command}\n" for command in commands) + signature
    return line(f"push-cert\0 {capabilities}") + b"".join(map(line, text.splitlines(keepends=True)))


END = line("push-cert-end\n")


def feed(found, data):
    """Have a `Push` read the next piece; returns whether all refs are known."""
    return run_at_once(found.feeding(data))
