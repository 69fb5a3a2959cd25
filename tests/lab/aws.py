"""AWS Signature Version 4, service side and client side, written from the specification and not from the gate's code.

The service is strict: one spelling of a path (that of S3 or of other services), and every `x-amz-` field signed.
"""

import hashlib
import hmac
import posixpath
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote

REGION = "eu-central-1"


@dataclass(frozen=True)
class Keys:
    """The keys of one side."""

    ident: str
    key: str
    token: str = ""


def mac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def canonical_path(path, service):
    if service == "s3":
        return quote(unquote(path), safe="/-_.~")
    plain = posixpath.normpath(path) + ("/" if path.endswith("/") and path != "/" else "")
    return quote(plain, safe="/-_.~")


def signature(keys, service, date, method, target, headers, names, payload):  # noqa: PLR0917 - as the standard has it
    """Return the signature; names of `headers` are in lower case."""
    path, _, query = target.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    canonical_query = sorted(
        f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in pairs if n != "X-Amz-Signature"
    )
    fields = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names)
    canonical = "\n".join(
        [method, canonical_path(path, service), "&".join(canonical_query), fields, ";".join(names), payload]
    )
    scope = f"{date[:8]}/{REGION}/{service}/aws4_request"
    key = f"AWS4{keys.key}".encode()
    for part in scope.split("/"):
        key = mac(key, part)
    return mac(key, f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{sha(canonical.encode())}").hex()


def signed(keys, host, method, target, *, service="s3", body=b"", date="20261122T101112Z", more=None, payload_hash=""):
    """Return the headers of a signed request; `payload_hash` replaces the hash of the body."""
    headers = {"host": host, "x-amz-date": date, **(more or {})}
    payload = payload_hash or sha(body)
    if service == "s3" or payload_hash:
        headers["x-amz-content-sha256"] = payload
    if keys.token:
        headers["x-amz-security-token"] = keys.token
    names = sorted(headers)
    computed = signature(keys, service, date, method, target, headers, names, payload)
    credential = f"{keys.ident}/{date[:8]}/{REGION}/{service}/aws4_request"
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={';'.join(names)}, Signature={computed}"
    )
    return headers


def presigned(keys, host, method, target, *, service="s3", date="20261122T101112Z"):
    """Return the target of a presigned request."""
    parameters = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{keys.ident}/{date[:8]}/{REGION}/{service}/aws4_request",
        "X-Amz-Date": date,
        "X-Amz-Expires": "900",
        "X-Amz-SignedHeaders": "host",
        **({"X-Amz-Security-Token": keys.token} if keys.token else {}),
    }
    target += ("&" if "?" in target else "?") + "&".join(f"{n}={quote(v, safe='-_.~')}" for n, v in parameters.items())
    payload = "UNSIGNED-PAYLOAD" if service == "s3" else sha(b"")
    computed = signature(keys, service, date, method, target, {"host": host}, ["host"], payload)
    return f"{target}&X-Amz-Signature={computed}"


def verdict(keys, head, body):
    """Verify a request as the service does: returns `ok` or the error code."""
    line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    query = dict(parse_qsl(target.partition("?")[2], keep_blank_values=True))
    if "authorization" in headers:
        words = headers["authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(",")
        fields = dict(word.strip().split("=", 1) for word in words)
        date, token = headers["x-amz-date"], headers.get("x-amz-security-token", "")
    else:
        fields = {name: query.get(f"X-Amz-{name}", "") for name in ("Credential", "SignedHeaders", "Signature")}
        date, token = query.get("X-Amz-Date", ""), query.get("X-Amz-Security-Token", "")
    ident, _, _, service, _ = fields["Credential"].split("/")
    names = fields["SignedHeaders"].split(";")
    unsigned = [name for name in headers if name.startswith("x-amz-") and name not in names]
    payload = headers.get("x-amz-content-sha256")
    if payload is None:
        payload = "UNSIGNED-PAYLOAD" if service == "s3" else sha(body)
    if ident != keys.ident or token != keys.token:
        return "InvalidAccessKeyId"
    if unsigned or "host" not in names:
        return "AccessDenied"
    if len(payload) == 64 and payload != sha(body):
        return "XAmzContentSHA256Mismatch"
    computed = signature(keys, service, date, method, target, headers, names, payload)
    return "ok" if computed == fields["Signature"] else "SignatureDoesNotMatch"


def service_of(keys, answers=None):
    """Return an answer function that verifies each request and answers with the verdict and the head, like an error of S3."""

    def answer(connection, head):
        lower = head.lower()
        stream = connection.makefile("rb")
        body = b""
        if b"content-length: " in lower:
            body = stream.read(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        elif b"transfer-encoding: chunked" in lower:
            while size := int(stream.readline(), 16):
                body += stream.read(size + 2)[:-2]
            stream.readline()
        result = verdict(keys, head, body)
        if answers is not None:
            answers.append(result)
        text = result.encode() + b"\n" + head
        status = b"200 OK" if result == "ok" else b"403 Forbidden"
        connection.sendall(
            b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(text), text)
        )

    return answer
