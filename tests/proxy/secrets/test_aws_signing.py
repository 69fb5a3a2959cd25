"""AWS Signature Version 4 by the examples that AWS publishes, and what is read as a signature at all."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.request.request_head import Head
from proxy.secrets import SecretInjector, make_aws_keys, split_aws_keys
from proxy.secrets.aws_signing import Scope, canonical_request, signature, signing_key, spellings
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName

EMPTY = hashlib.sha256(b"").hexdigest()
FORM, PUT = (hashlib.sha256(text).hexdigest() for text in (b"Param1=value1", b"Welcome to Amazon S3."))
KEY = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"  # of the test suite; S3's examples have a slash for its plus
SUITE = Scope(b"20150830", b"us-east-1", b"service"), b"20150830T123600Z", KEY, {"host": "example.amazonaws.com"}
S3 = (
    Scope(b"20130524", b"us-east-1", b"s3"), b"20130524T000000Z", KEY.replace(b"+", b"/"),
    {"host": "examplebucket.s3.amazonaws.com"},
)  # fmt: skip
DATE = {"x-amz-date": "20150830T123600Z"}
DATE_S3 = {"x-amz-date": "20130524T000000Z"}
PRESIGNED = (
    "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3"
    "%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
)
# the name in AWS's test suite, or in the S3 API reference ("Authenticating Requests"): what is signed, and the signature
PUBLISHED = {
    "get-vanilla": (SUITE, "GET", "/", DATE, EMPTY, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    "get-vanilla-query-order-key-case": (
        SUITE, "GET", "/?Param2=value2&Param1=value1", DATE, EMPTY,
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    "post-vanilla": (SUITE, "POST", "/", DATE, EMPTY, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    "post-x-www-form-urlencoded": (
        SUITE, "POST", "/", {**DATE, "content-type": "application/x-www-form-urlencoded"}, FORM,
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
    "get-header-value-trim": (
        SUITE, "GET", "/", {**DATE, "my-header1": " value1", "my-header2": ' "a   b   c"'}, EMPTY,
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    "get-utf8": (SUITE, "GET", "/ሴ", DATE, EMPTY, "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
    "get-space": (SUITE, "GET", "/example space/", DATE, EMPTY, "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"),
    "get-slashes": (SUITE, "GET", "//example//", DATE, EMPTY, "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"),
    "get-relative": (SUITE, "GET", "/example/..", DATE, EMPTY, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    "S3, GET Object": (
        S3, "GET", "/test.txt", {**DATE_S3, "range": "bytes=0-9", "x-amz-content-sha256": EMPTY}, EMPTY,
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "S3, PUT Object": (
        S3, "PUT", "/test$file.text",
        {**DATE_S3, "date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY", "x-amz-content-sha256": PUT},
        PUT, "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "S3, GET Bucket Lifecycle": (
        S3, "GET", "/?lifecycle", {**DATE_S3, "x-amz-content-sha256": EMPTY}, EMPTY,
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    "S3, List Objects": (
        S3, "GET", "/?max-keys=2&prefix=J", {**DATE_S3, "x-amz-content-sha256": EMPTY}, EMPTY,
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
    "S3, presigned": (
        S3, "GET", PRESIGNED, {}, "UNSIGNED-PAYLOAD", "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("world", "method", "target", "more", "payload", "wanted"), PUBLISHED.values(), ids=PUBLISHED)
def test_signatures_match_the_aws_test_vectors(world, method, target, more, payload, wanted):  # noqa: PLR0917 - a row
    scope, date, secret, always = world
    path, _, query = target.encode().partition(b"?")
    headers = [(name.encode(), [value.encode()]) for name, value in sorted({**always, **more}.items())]
    made = {
        signature(
            signing_key(secret, scope), scope, date,
            canonical_request(method.encode(), one, other, headers, payload.encode()),
        )
        for one, other in spellings(path, query)
    }  # fmt: skip
    assert wanted.encode() in made


SECRET = Secret("aws", Source(SourceKind.ENV, ("AWS",)), "AWS", ((HostName("x.example"), 443),), (Slot(SlotKind.AWS),))
IDENT, REAL = b"AKIAREALREALREAL0001", b"real/Secret+Key0123456789"
# what a source gives, and what is made of it
WRITTEN = [
    (b"AKIAREALREALREAL0001:key-key-key\n", (b"AKIAREALREALREAL0001", b"key-key-key")),
    (b"ASIAREALREALREAL0001:key-key-key:token+/==", (b"ASIAREALREALREAL0001", b"key-key-key", b"token+/==")),
    (b'{"Version": 1, "AccessKeyId": "AKIAREALREALREAL0001", "SecretAccessKey": "k"}\n', (b"AKIAREALREALREAL0001", b"k")),
    (b'{"AccessKeyId": "a", "SecretAccessKey": "k", "SessionToken": "t", "Expiration": "x"}', (b"a", b"k", b"t")),
    (b'{"AccessKeyId": "a", "SecretAccessKey": "k", "SessionToken": null}', (b"a", b"k")),
    (b'{"AccessKeyId": 1, "SecretAccessKey": "k"}', ()),
    (b'{"SecretAccessKey": "k"}', (b"", b"k")),
    (b'["a", "k"]', (b'["a", "k"]',)),
    (b"{" * 100_000, ()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "values"), WRITTEN)
def test_keys_are_parsed_in_common_formats(text, values):
    assert split_aws_keys(text) == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "has to be `ID:KEY`"),
        ((IDENT,), "has to be `ID:KEY`"),
        ((IDENT, REAL, b"token-token", b"more"), "has to be `ID:KEY`"),
        ((b"AKIA/REAL/REAL", REAL), "its access key id has to be"),
        ((b"", REAL), "its access key id has to be"),
        ((IDENT, b"short"), "8 to 4096 characters"),
        ((IDENT, b"with a space in it"), "one line of visible ASCII"),
    ],
)
def test_unusable_keys_are_errors_without_a_value(values, message):
    with pytest.raises(ValueError, match=message) as said:
        make_aws_keys(SECRET, values)
    assert not any(value and value.decode() in str(said.value) for value in values)


def test_placeholders_look_like_keys():
    broker = SecretInjector([make_aws_keys(SECRET, (IDENT, REAL, b"token-token-token"))])
    made = broker.placeholders
    assert set(made) == set(SECRET.variables) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    assert made["AWS_ACCESS_KEY_ID"].startswith("AKIA")
    assert (len(made["AWS_ACCESS_KEY_ID"]), len(made["AWS_SECRET_ACCESS_KEY"])) == (20, 40)
    assert not {value.decode() for value in (IDENT, REAL)} & set(made.values())


HELD = make_aws_keys(SECRET, (IDENT, REAL))
BROKER = SecretInjector([HELD])
SCOPE = "20261122/eu-central-1/s3/aws4_request"
GOOD = f"AWS4-HMAC-SHA256 Credential={HELD.ident.placeholder.decode()}/{SCOPE}, SignedHeaders=host;x-amz-date, Signature={'0' * 64}"


@given(
    st.lists(st.sampled_from([*GOOD.replace("=", " = ").split(" "), ", ", "/", GOOD, GOOD[:-1], " "]), max_size=12).map("".join),
    st.sampled_from(["/", f"/?X-Amz-Signature={'0' * 64}", f"/?X-Amz-Credential={HELD.ident.placeholder.decode()}"]),
)  # fmt: skip
def test_only_requests_with_the_placeholder_are_signed(value, path):
    fields = ((b"Authorization", value.encode()), (b"X-Amz-Date", b"20261122T000000Z"))
    head = Head(b"HTTP/1.1", b"GET", b"", b"", path.encode(), fields)
    carried = BROKER.read(head, HostName("x.example"), 443, tls=True, content=b"")
    assert carried.signed is None
    assert carried.uses == ()
    if HELD.ident.placeholder.decode() in value + path:
        assert carried.misused == "aws"


def test_signed_request_reveals_no_key():
    assert json.dumps(repr(BROKER)) == '"SecretInjector(...)"'
    assert REAL.decode() not in repr(HELD)
