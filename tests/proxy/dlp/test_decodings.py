"""Credentials as clients encode them: in forms, in queries and in JSON always, and in `strict` mode in what else is usual."""

import base64
import json
import quopri
import string
from urllib.parse import quote, quote_plus, urlencode

import pytest

from proxy.dlp.decodings import readings
from proxy.dlp.head_scan import Heads
from proxy.event_loop.turn import run_at_once
from proxy.request.request_head import Head
from rules.verdicts import Scan
from tests.proxy.dlp.leaks_harness import LONG, body, cut, sent
from tests.proxy.leaky import KINDS, TOKEN, some

PEM = next(row[1] for row in KINDS if row[0] == "private-key")
URL = f"https://me:{some(9)}/{some(9)}@db.example/a".replace("/" + some(0), "/")
SIGNED = string.ascii_letters + string.digits + "+/"
SECRETS = {
    "private-key": PEM,
    "azure-storage-key": "Account" + "Key=" + some(84, SIGNED) + "+/==",
    "aws-secret-access-key": "secret" + "AccessKey: " + some(36, SIGNED) + "/+/+",
    "url-password": "postgres://me:" + some(16) + "@db.example/a",
    "slack-webhook": next(row[1] for row in KINDS if row[0] == "slack-webhook"),
}
FORMS = {
    "as browsers and Python write it": quote_plus,
    "as curl --data-urlencode writes it": lambda text: quote(text, safe="-._~"),
    "as JavaScript writes it": lambda text: quote(text, safe="-_.!~*'()"),
    "in small letters": lambda text: quote(text, safe="").lower() if text.islower() else quote(text, safe=""),
}
JSONS = {
    "as PHP writes it": lambda text: json.dumps(text).replace("/", "\\/"),
    "as Gson writes it": lambda text: json.dumps(text).replace("=", "\\u003d").replace("+", "\\u002b"),
    "with every sign escaped": lambda text: '"' + "".join(f"\\u{ord(sign):04x}" for sign in text) + '"',
}


def in_url(path, **more):
    head = Head(b"HTTP/1.1", b"GET", b"", b"", path.encode(), (), **more)
    return run_at_once(Heads().scan(head, None, lambda _: False))


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
def test_credential_in_an_encoded_form_is_found(kind, write):
    text = f"a=b+c&note={write(SECRETS[kind])}&d=e".encode()
    assert sent(body(Scan.BLOCK, form=True), [text])[2] == f"{kind} in the body"
    assert sent(body(Scan.FLAG, form=True), [text])[1] == [kind]


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
def test_credential_in_an_encoded_query_is_found(kind, write):
    assert in_url(f"/a?b=c+d&note={write(SECRETS[kind])}&d=e") == [(kind, "the URL")]


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("write", JSONS.values(), ids=JSONS)
def test_credential_in_json_in_a_query_is_found(kind, write):
    for encode in FORMS.values():
        assert in_url(f"/a?payload={encode(write(SECRETS[kind]))}") == [(kind, "the URL")]


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("write", JSONS.values(), ids=JSONS)
def test_credential_in_escaped_json_is_found(kind, write):
    text = f'{{"a": "b", "note": {write(SECRETS[kind])}}}'.encode()
    assert sent(body(Scan.BLOCK), [text])[2] == f"{kind} in the body"


def _referenced(text, sign):
    return "".join(each if each.isalnum() and each != "g" else sign(ord(each)) for each in text)


def _nested(text):
    for _ in range(3):
        text = json.dumps({"note": text}).replace("/", "\\/").replace("+", "\\u002b").replace("=", "\\u003d")
    return text.encode()


def _deep(text):
    for _ in range(7):  # 127 backslashes at each end of a line
        text = json.dumps(text)
    return text.encode()


PART = b"--x\r\nContent-Type: text/plain\r\ncontent-transfer-encoding: %b\r\n\r\n%b\r\n--x--"
BEFORE = "a line that is rather long, as lines of mail are, so that what follows is broken; "
OTHERS = {  # what is sent, and what is said of it
    "JSON within JSON": (_nested, {}),
    "JSON within JSON many times": (_deep, {}),
    "JSON in a form": (lambda text: b"payload=" + quote_plus(_nested(text)).encode(), {"form": True}),
    "decimal references": (lambda text: _referenced(text, "&#{};".format).encode(), {}),
    "hexadecimal references": (lambda text: _referenced(text, "&#x{:04X};".format).encode(), {}),
    "UTF-16": (lambda text: text.encode("utf-16"), {}),
    "UTF-16, the larger end first": (lambda text: text.encode("utf-16-be"), {}),
    "UTF-32": (lambda text: text.encode("utf-32"), {}),
    "JSON in UTF-16": (lambda text: JSONS["as PHP writes it"](text).encode("utf-16-le"), {}),
    "a part in base64": (lambda text: PART % (b"base64", base64.encodebytes((BEFORE + text).encode())), {"parts": True}),
    "a part in quoted-printable": (
        lambda text: PART % (b"Quoted-Printable", quopri.encodestring((BEFORE + text).encode())), {"parts": True}
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("way", OTHERS)
def test_credential_in_common_wrappers_is_found(kind, way):
    write, said = OTHERS[way]
    for size in (1, 5000, 100_000):
        assert f"{kind} in the body" in sent(body(Scan.BLOCK, **said), cut(write(SECRETS[kind]), size))[2], size


def test_base64_is_decoded_only_where_declared():
    text = base64.encodebytes((BEFORE + TOKEN).encode())
    for one, said in ((text, {}), (PART % (b"base64", text), {}), (PART % (b"8bit", text), {"parts": True})):
        assert sent(body(Scan.BLOCK, **said), [one])[2] == ""


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_credential_in_a_form_is_found_at_any_cut(size):
    before = urlencode({"text": LONG.decode()[:9000]})
    text = f"{before}&note={quote_plus(SECRETS['azure-storage-key'])}&more={before}".encode()
    assert "azure-storage-key in the body" in sent(body(Scan.BLOCK, form=True), cut(text, size))[2]


def test_json_sent_as_a_form_is_scanned_as_is():
    """`curl -d` says that everything is a form."""
    text = json.dumps({"note": SECRETS["aws-secret-access-key"]}).encode()
    assert sent(body(Scan.BLOCK, form=True), [text])[2] == "aws-secret-access-key in the body"


PLACES = {
    "a parameter of a form": f"grant_type=refresh_token&client_secret={quote_plus(SECRETS['azure-storage-key'])}",
    "a form without any": urlencode({"text": "a + b = c & d/e"}),
}


@pytest.mark.parametrize("text", PLACES.values(), ids=PLACES)
def test_credential_in_its_form_field_is_no_finding(text):
    assert sent(body(Scan.BLOCK, form=True), [text.encode()])[2] == ""


def test_escaped_separator_makes_no_credential_field():
    """What follows `%26` is no parameter by itself: the server gets it as part of the value."""
    text = "note=" + quote("a&token=" + SECRETS["azure-storage-key"], safe="")
    assert sent(body(Scan.BLOCK, form=True), [text.encode()])[2] == "azure-storage-key in the body"


# --- strict ---

B64 = base64.b64encode
ENCODED = {
    "base64": B64(f"user:{TOKEN}".encode()),
    "base64 for URLs": base64.urlsafe_b64encode(b"\xfb\xff\xbf" + TOKEN.encode()),
    "base64 without its end": B64(f"user:{TOKEN}".encode()).rstrip(b"="),
    "base64 in lines": base64.encodebytes(b"some text before it, of some length, " * 3 + TOKEN.encode()),
    "base64 in lines of JSON": base64.encodebytes(b"some text before it, of some length, " * 3 + TOKEN.encode()).replace(b"\n", b"\\n"),
    "hexadecimal": TOKEN.encode().hex().encode(),
    "hexadecimal in capitals": TOKEN.encode().hex().upper().encode(),
    "percent signs twice": quote("".join(f"%{ord(sign):02X}" for sign in TOKEN)).encode(),
}  # fmt: skip


@pytest.mark.parametrize("text", ENCODED.values(), ids=ENCODED)
def test_strict_finds_encoded_credentials(text):
    text = b'{"file": "' + text + b'"}'
    assert sent(body(Scan.STRICT, unnamed=True), [text])[2] == "github-token in the body"
    assert sent(body(Scan.STRICT), [text])[2] == ""  # a rule or a secret names the host
    assert sent(body(Scan.BLOCK, unnamed=True), [text])[2] == ""


def test_strict_finds_cut_base64():
    text = B64(bytes(30000) + b" " + TOKEN.encode() + b" " + bytes(30000))
    for size in (4096, 16384, 20001):
        assert sent(body(Scan.STRICT, unnamed=True), cut(text, size))[2] == "github-token in the body"


def test_strict_finds_credentials_in_form_fields():
    text = f"client_secret={TOKEN}".encode()
    assert sent(body(Scan.STRICT, form=True, unnamed=True), [text])[2] == "github-token in the body"


IN_HEADS = {
    "Authorization": (b"/", (b"Authorization", b"Bearer " + TOKEN.encode()), "the header `Authorization`"),
    "Basic": (b"/", (b"Authorization", b"Basic " + B64(b"me:" + TOKEN.encode())), "the header `Authorization`"),
    "Cookie": (b"/", (b"Cookie", b"a=" + TOKEN.encode()), "the header `Cookie`"),
    "a key's own header": (b"/", (b"X-Api-Key", TOKEN.encode()), "the header `X-Api-Key`"),
    "a parameter": (b"/a?token=" + TOKEN.encode(), (b"A", b"b"), "the URL"),
    "a path in hexadecimal": (b"/" + TOKEN.encode().hex().encode(), (b"A", b"b"), "the URL"),
}


@pytest.mark.parametrize(("path", "field", "where"), IN_HEADS.values(), ids=IN_HEADS)
def test_strict_finds_credentials_in_header_fields(path, field, where):
    head = Head(b"HTTP/1.1", b"GET", b"", b"", path, (field,))
    heads = Heads()
    for _ in range(2):
        assert run_at_once(heads.scan(head, None, lambda _: False)) == []  # and nothing is remembered as clean by that
        assert run_at_once(heads.scan(head, None, lambda _: False, strict=True)) == [("github-token", where)]


BEHIND_ESCAPES = [
    (b"x%2Bghp_", True), (rb"x\u002Bghp_", False), (rb"x\/ghp_", False), (rb"x\\\\/ghp_", False), (rb"x\\u002Bghp_", False),
    (b"x&#x00002B;ghp_", False), (b"x&quot;ghp_", False), (b"x&#43;ghp_", False), (b"x%5C%2Fghp_", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "form"), BEHIND_ESCAPES)
def test_text_after_a_cut_escape_counts_as_new(text, form):
    """The first bytes were looked at before; where an escape is cut there, what follows it was not."""
    for known in range(1, text.find(b"ghp_") + 1):
        for reading, at in readings(text, known, form=form):
            assert at <= reading.find(b"ghp_"), known
