"""AWS's side of Signature Version 4, and a client's, written from the standard and not from the gate's code.

A service knows its keys and is strict: one spelling of a path (S3's or everybody else's), every `x-amz-` field signed.
"""

import hashlib
import hmac
import posixpath
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote

REGION = "eu-central-1"


@dataclass(frozen=True)
class Keys:
    """What one side has."""

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
    """Sign; `headers` in lower case."""
    path, _, query = target.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    said = sorted(f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in pairs if n != "X-Amz-Signature")
    fields = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names)
    canonical = "\n".join([method, canonical_path(path, service), "&".join(said), fields, ";".join(names), payload])
    scope = f"{date[:8]}/{REGION}/{service}/aws4_request"
    key = f"AWS4{keys.key}".encode()
    for part in scope.split("/"):
        key = mac(key, part)
    return mac(key, f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{sha(canonical.encode())}").hex()


def signed(keys, host, method, target, *, service="s3", body=b"", date="20261122T101112Z", more=None, said=""):
    """Return the fields of a request that a client signs; `said`: of the body, instead of its hash."""
    headers = {"host": host, "x-amz-date": date, **(more or {})}
    payload = said or sha(body)
    if service == "s3" or said:
        headers["x-amz-content-sha256"] = payload
    if keys.token:
        headers["x-amz-security-token"] = keys.token
    names = sorted(headers)
    made = signature(keys, service, date, method, target, headers, names, payload)
    credential = f"{keys.ident}/{date[:8]}/{REGION}/{service}/aws4_request"
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={';'.join(names)}, Signature={made}"
    )
    return headers


def presigned(keys, host, method, target, *, service="s3", date="20261122T101112Z"):
    """Return the target of a request that is signed in its URL."""
    said = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{keys.ident}/{date[:8]}/{REGION}/{service}/aws4_request",
        "X-Amz-Date": date,
        "X-Amz-Expires": "900",
        "X-Amz-SignedHeaders": "host",
        **({"X-Amz-Security-Token": keys.token} if keys.token else {}),
    }
    target += ("&" if "?" in target else "?") + "&".join(f"{n}={quote(v, safe='-_.~')}" for n, v in said.items())
    payload = "UNSIGNED-PAYLOAD" if service == "s3" else sha(b"")
    made = signature(keys, service, date, method, target, {"host": host}, ["host"], payload)
    return f"{target}&X-Amz-Signature={made}"


def verdict(keys, head, body):
    """Say what a service thinks of a request: `ok`, or what is wrong with it."""
    line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    query = dict(parse_qsl(target.partition("?")[2], keep_blank_values=True))
    if "authorization" in headers:
        words = headers["authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(",")
        said = dict(word.strip().split("=", 1) for word in words)
        date, token = headers["x-amz-date"], headers.get("x-amz-security-token", "")
    else:
        said = {name: query.get(f"X-Amz-{name}", "") for name in ("Credential", "SignedHeaders", "Signature")}
        date, token = query.get("X-Amz-Date", ""), query.get("X-Amz-Security-Token", "")
    ident, _, _, service, _ = said["Credential"].split("/")
    names = said["SignedHeaders"].split(";")
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
    made = signature(keys, service, date, method, target, headers, names, payload)
    return "ok" if made == said["Signature"] else "SignatureDoesNotMatch"


def service_of(keys, answers=None):
    """Return what an origin answers with: the verdict, and what it was asked; as S3 does when it disagrees."""

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
        said = verdict(keys, head, body)
        if answers is not None:
            answers.append(said)
        text = said.encode() + b"\n" + head
        status = b"200 OK" if said == "ok" else b"403 Forbidden"
        connection.sendall(
            b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(text), text)
        )

    return answer
