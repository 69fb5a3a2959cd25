"""Masking of credentials in argument vectors."""

import pytest

from proxy.telemetry.masking import MASK, masked

SECRET = "hunter2hunter2hunter2"

CASES = {
    "a flag's value": ["mysql", "--password", SECRET],
    "a flag with its value": ["mysql", f"--db-password={SECRET}"],
    "one dash": ["tool", "-token", SECRET],
    "an assignment": ["env", f"GITHUB_TOKEN={SECRET}", "make"],
    "an aws key": ["env", f"AWS_SECRET_ACCESS_KEY={SECRET}"],
    "a basic user": ["curl", "-u", f"me:{SECRET}", "https://host/"],
    "a long user": ["curl", f"--user=me:{SECRET}"],
    "a glued user": ["curl", f"-ume:{SECRET}"],
    "a proxy's user": ["curl", "--proxy-user", f"me:{SECRET}"],
    "a header": ["curl", "-H", f"Authorization: Bearer {SECRET}"],
    "a header of one's own": ["curl", "-H", f"X-Api-Key: {SECRET} {SECRET}"],
    "a cookie": ["curl", "-H", f"Cookie: a=b; session={SECRET}"],
    "a url": ["git", "clone", f"https://me:{SECRET}@host/repository"],
    "a url with a token alone": ["git", "clone", f"https://{SECRET}@host/repository"],
    "json": ["curl", "-d", f'{{"api_key": "{SECRET}", "x": 1}}'],
    "a form": ["curl", "-d", f"a=1&password={SECRET}&b=2"],
    "a script": ["sh", "-c", f"export TOKEN='{SECRET} {SECRET}'; curl host"],
    "a known prefix": ["tool", f"ghp_{SECRET}"],
    "a model's key": ["tool", f"sk-ant-{SECRET}"],
    "a jwt": ["tool", f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}"],
    "a jwt within a word": ["tool", f"a-eyJ-eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET} x-y"],
    "a key": ["tool", f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n-----END EC PRIVATE KEY-----"],
    "behind what is cut": ["tool", *["x"] * 100, f"--password={SECRET}"],
}


@pytest.mark.parametrize("argv", CASES.values(), ids=CASES)
def test_a_credential_is_masked(argv):
    shown = masked(argv)
    assert SECRET not in " ".join(shown)
    assert shown[0] == argv[0]
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "argv",
    [
        ["git", "log", "--author=Jo", "--format=%h"],
        ["pip", "download", "six==1.17"],
        ["ssh", "-p", "22", "host"],
        ["curl", "-o", "token.txt", "https://host/a:b@c"],
        ["ls", "-u", "a/b:c"],
        [],
        [""],
    ],
)
def test_text_without_credential_stays_unchanged(argv):
    assert masked(argv) == tuple(argv)


def test_text_around_a_credential_stays():
    assert masked(["git", "clone", "https://me:x@host/repo"])[2] == f"https://{MASK}@host/repo"
    assert masked(["curl", "-u", "me:x"])[2] == f"me:{MASK}"


@pytest.mark.parametrize(
    "piece", ["a", "token", "auth=", "a:", "x-token", "'\"", "eyJ", "eyJ-", "ghp_", "bearer ", "-", "://"]
)
def test_masking_of_hostile_arguments_is_fast(piece):
    # Quadratic in the whole length, this would take until the suite's own time limit.
    masked([piece * (2_000_000 // len(piece))] * 70)
