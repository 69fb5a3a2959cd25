"""Things that look like credentials, put together here so that no line of this repository is one."""

import base64
import json
import random
import string

_MADE = random.Random(7)  # always the same ones
ALNUM = string.ascii_letters + string.digits
URLSAFE = ALNUM + "-_"
LOWER_HEX = "0123456789abcdef"


def some(count, alphabet=ALNUM):
    """Characters as random as a credential's: each as often as the next."""
    rounds = -(-count // len(alphabet))
    drawn = [letter for _ in range(rounds) for letter in _MADE.sample(alphabet, len(alphabet))]
    return "".join(drawn[:count])


def _jwt(alg="HS256"):
    def part(said):
        return base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")

    return f"{part({'alg': alg, 'typ': 'JWT'})}.{part({'sub': '1234567890', 'name': some(20)})}.{some(43, URLSAFE)}"


def _pem(kind):
    lines = [some(64, ALNUM + "+/") for _ in range(3)]
    return "\n".join(["-----BEGIN " + kind + "PRIVATE KEY-----", *lines, "-----END " + kind + "PRIVATE KEY-----"])


SLACK = "-".join([some(11, string.digits), some(11, string.digits), some(24)])

# kind, what is found, what nearly is
KINDS = [
    ("private-key", _pem("RSA "), "-----BEGIN " + "PUBLIC KEY-----\n" + some(64) + some(64)),
    ("private-key", _pem("").replace("\n", "\\n"), "-----BEGIN " + "PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----"),
    ("private-key", _pem("OPENSSH "), "a `-----BEGIN " + "OPENSSH PRIVATE KEY-----` line begins such a file"),
    ("github-token", "gh" + "p_" + some(36), "gh" + "p_" + some(35)),
    ("github-token", "gh" + "s_" + some(36), "gh" + "s_" + "x" * 36),
    ("github-fine-grained-token", "github" + "_pat_" + some(82, ALNUM + "_"), "github" + "_pat_" + some(40)),
    ("gitlab-token", "gl" + "pat-" + some(20, URLSAFE), "gl" + "pat-your-token"),
    ("aws-access-key-id", "AK" + "IA" + some(16, string.ascii_uppercase + "234567"), "AK" + "IAIOSFODNN7EXAMPLE"),
    ("aws-access-key-id", "AS" + "IA" + some(16, string.ascii_uppercase + "234567"), "AS" + "IA" + "ABCDEFGHIJKLMNOPQRST"),
    ("aws-secret-access-key", "AWS_" + "SECRET_ACCESS_KEY=" + some(40, ALNUM + "+/"), "AWS_" + "SECRET_ACCESS_KEY=" + "A" * 40),
    ("aws-secret-access-key", '"Secret' + 'AccessKey": "' + some(40, ALNUM + "+/") + '"', '"Secret' + 'AccessKey": null'),
    ("slack-token", "xox" + "b-" + SLACK, "xox" + "b-not-a-token-but-words-with-dashes"),
    ("slack-webhook", "https://hooks.slack" + ".com/services/T0" + some(8, string.digits) + "/B0" + some(8, string.digits) + "/" + some(24), "https://hooks.slack" + ".com/services/T00000000/B00000000/abcd"),
    ("stripe-key", "sk" + "_live_" + some(24), "pk" + "_live_" + some(24)),
    ("webhook-secret", "whsec" + "_" + some(32), "whsec" + "_test"),
    ("anthropic-key", "sk-" + "ant-api03-" + some(93, URLSAFE), "sk-" + "ant-api03-..."),
    ("openai-key", "sk-" + "proj-" + some(60, URLSAFE), "sk-" + "proj-" + "a" * 60),
    ("openrouter-key", "sk-" + "or-v1-" + some(64, LOWER_HEX), "sk-" + "or-v1-" + some(63, LOWER_HEX)),
    ("sk-key", "sk-" + some(40), "task-" + some(40)),
    ("sk-key", "\\nsk-" + some(48), "sk-" + "circlefadedotbeforeanimationdelaylong"),
    ("google-api-key", "AI" + "za" + some(35, URLSAFE), "AI" + "za" + some(20)),
    ("google-oauth-token", "ya" + "29." + some(60, URLSAFE), "ya" + "29." + "short"),
    ("google-client-secret", "GOC" + "SPX-" + some(28, URLSAFE), "GOC" + "SPX-" + "x" * 28),
    ("huggingface-token", "hf" + "_" + some(34, string.ascii_letters), "hf" + "_hub_download_of_a_file_in_the_repo"),
    ("npm-token", "npm" + "_" + some(36), "npm" + "_config_registry_and_other_variables_of_it"),
    ("pypi-token", "pypi-" + "AgE" + some(80, URLSAFE), "pypi-" + "AgE"),
    ("rubygems-key", "rubygems" + "_" + some(48, LOWER_HEX), "rubygems" + "_version"),
    ("docker-token", "dckr" + "_pat_" + some(27, URLSAFE), "dckr" + "_pat_here"),
    ("digitalocean-token", "dop" + "_v1_" + some(64, LOWER_HEX), "dop" + "_v1_" + some(32, LOWER_HEX)),
    ("shopify-token", "shp" + "at_" + some(32, LOWER_HEX), "shp" + "at_" + "0" * 32),
    ("sendgrid-key", "SG" + "." + some(22, URLSAFE) + "." + some(43, URLSAFE), "SG" + "." + some(22)),
    ("telegram-bot-token", some(9, string.digits) + ":" + "AA" + some(33, URLSAFE), "10:" + "AA" + ":BB:CC:DD:EE:FF"),
    ("azure-storage-key", "Account" + "Key=" + some(86, ALNUM + "+/") + "==", "Account" + "Key=<key>=="),
    ("azure-client-secret", "abc" + "8Q~" + some(34, ALNUM + "_.-"), "abc" + "8Q~" + some(20)),
    ("vault-token", "hv" + "s." + some(90, URLSAFE), "hv" + "s." + "example"),
    ("grafana-token", "gl" + "sa_" + some(32) + "_" + some(8, LOWER_HEX), "gl" + "sa_" + some(32)),
    ("linear-key", "lin" + "_api_" + some(40), "lin" + "_api_" + some(20)),
    ("notion-token", "ntn" + "_" + some(46), "secret" + "_of_the_service_that_is_called_by_it_all_day"),
    ("postman-key", "PM" + "AK-" + some(24, LOWER_HEX) + "-" + some(34, LOWER_HEX), "PM" + "AK-" + some(24, LOWER_HEX)),
    ("perplexity-key", "pp" + "lx-" + some(48), "pp" + "lx-" + some(20)),
    ("groq-key", "gs" + "k_" + some(52), "gs" + "k_" + some(30)),
    ("xai-key", "xa" + "i-" + some(80), "xa" + "i-" + some(40)),
    ("replicate-token", "r8" + "_" + some(37), "r8" + "_" + some(20)),
    ("supabase-token", "sb" + "p_" + some(40, LOWER_HEX), "sb" + "p_" + some(20)),
    ("sentry-token", "sntryu" + "_" + some(64, LOWER_HEX), "sntryu" + "_" + some(20)),
    ("newrelic-key", "NR" + "AK-" + some(27, string.ascii_uppercase + string.digits), "NR" + "AK-" + some(10)),
    ("heroku-key", "HR" + "KU-" + some(36, URLSAFE), "HR" + "KU-" + some(12)),
    ("tailscale-key", "tskey" + "-auth-" + some(30), "tskey" + "-auth-" + some(8)),
    ("terraform-token", some(14) + "." + "atlasv1." + some(60, URLSAFE), "x." + "atlasv1." + some(10)),
    ("age-key", "AGE-SECRET" + "-KEY-1" + some(58, "023456789ACDEFGHJKLMNPQRSTUVWXYZ"), "AGE-SECRET" + "-KEY-1..."),
    ("jwt", _jwt(), _jwt("none")),
    ("jwt", _jwt("ES256"), "ey" + "JhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxIn0."),
    ("url-password", "postgres://app:" + some(16) + "@db.internal:5432/x", "postgres://app:${PASSWORD}@db.internal/x"),
    ("url-password", "https://ci:" + some(20) + "@git.example/a.git", "https://git.example:8443/@scope/package"),
    ("url-password", "redis://u:" + some(12) + "@h", "postgres://postgres:postgres@localhost/x"),
]  # fmt: skip
TOKEN = KINDS[3][1]  # a GitHub token, in tests that need just one
