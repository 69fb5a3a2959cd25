"""The environment of a task: clean by default, with the sandbox's roots of trust put before every common client.

Only names that carry no credential are taken over from the caller; anything else is named with `--env`.
"""

from collections.abc import Mapping, Sequence

from enforcer.errors import UsageError
from enforcer.sandbox.identity import Identity

_TAKEN = frozenset({"PATH", "LANG", "LANGUAGE", "TERM", "COLORTERM", "NO_COLOR", "TZ", "CI", "COLUMNS", "LINES"})
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# One bundle (the system's roots and our CA) behind every variable that replaces a client's store; the last of them
# adds to it. Sources: the manuals of OpenSSL, requests, curl, git, pip, Node.js, npm, Yarn, Deno, Cargo, the AWS and
# Google SDKs, gRPC, Bundler, Codex, uv and Nix.
_BUNDLE_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "npm_config_cafile",
    "YARN_HTTPS_CA_FILE_PATH", "DENO_CERT", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "BUNDLE_SSL_CA_CERT",
    "CODEX_CA_CERTIFICATE", "NIX_SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
_SYSTEM_STORE = {"UV_SYSTEM_CERTS": "true", "NODE_USE_SYSTEM_CA": "1", "DENO_TLS_CA_STORE": "system,mozilla"}


def build(caller: Mapping[str, str], identity: Identity, bundle: str, named: Sequence[str]) -> dict[str, str]:
    """Make a task's environment. `named` are `NAME` (taken over) or `NAME=VALUE`. Raises UsageError."""
    own = {name: value for name, value in caller.items() if name in _TAKEN or name.startswith("LC_")}
    own.setdefault("PATH", _PATH)
    own.update(
        HOME=identity.home,
        USER=identity.user,
        LOGNAME=identity.user,
        SHELL="/bin/sh",
        TMPDIR="/tmp",
    )
    own.update(dict.fromkeys(_BUNDLE_VARIABLES, bundle))
    own.update(_SYSTEM_STORE)
    for entry in named:
        name, equals, value = entry.partition("=")
        if not name or "\0" in entry:
            raise UsageError(f"`{entry}` is not a variable; write `--env NAME` or `--env NAME=VALUE`")
        if equals:
            own[name] = value
        elif name in caller:
            own[name] = caller[name]
        else:
            raise UsageError(f"`--env {name}`: there is no variable of that name here; write `--env {name}=VALUE`")
    return own
