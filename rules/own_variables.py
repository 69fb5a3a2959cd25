"""Environment variables that are a sandbox's own (`enforcer.run.environment`): no placeholder can stand there."""

from typing import Final

# Taken over from the caller, where they are set: they carry no credential.
TAKEN: Final = frozenset({
    "PATH", "LANG", "LANGUAGE", "TERM", "COLORTERM", "NO_COLOR", "TZ", "CI", "COLUMNS", "LINES",
    "GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL",
})  # fmt: skip
LOCALE: Final = "LC_"  # how the names of more of them begin
# One bundle (the system's roots and our CA) behind every variable that replaces a client's store; the last of them
# adds to it. Sources: the manuals of OpenSSL, requests, curl, git, pip, Node.js, npm, Yarn, Deno, Cargo, the AWS and
# Google SDKs, gRPC, Bundler, Codex, uv and Nix.
BUNDLE: Final = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "npm_config_cafile",
    "YARN_HTTPS_CA_FILE_PATH", "DENO_CERT", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "BUNDLE_SSL_CA_CERT",
    "CODEX_CA_CERTIFICATE", "NIX_SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
SYSTEM_STORE: Final = {"UV_SYSTEM_CERTS": "true", "NODE_USE_SYSTEM_CA": "1", "DENO_TLS_CA_STORE": "system,mozilla"}
JAVA: Final = "JAVA_TOOL_OPTIONS"
# How many processors there are, for runtimes that would ask the cgroup, which a sandbox doesn't show, or count the
# host's. Sources: the manuals of OpenMP (nproc(1) asks it too), Go, .NET, Python 3.13, Rayon and Cargo.
PROCESSORS: Final = (
    "OMP_NUM_THREADS", "GOMAXPROCS", "DOTNET_PROCESSOR_COUNT", "PYTHON_CPU_COUNT", "RAYON_NUM_THREADS",
    "CARGO_BUILD_JOBS",
)  # fmt: skip
GO_MEMORY: Final = "GOMEMLIMIT"  # runtime/debug.SetMemoryLimit
DOTNET_MEMORY: Final = "DOTNET_GCHeapHardLimit"  # bytes, in hexadecimal
NODE: Final = "NODE_OPTIONS"
TELEMETRY: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"  # the OpenTelemetry specification's
ACCOUNT: Final = ("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR")

_OWN: Final = frozenset(
    {*TAKEN, *BUNDLE, *SYSTEM_STORE, JAVA, *PROCESSORS, GO_MEMORY, DOTNET_MEMORY, NODE, TELEMETRY, *ACCOUNT}
)


def is_own_variable(name: str) -> bool:
    """Whether a task may find something else than a placeholder there."""
    return name in _OWN or name.startswith(LOCALE)


def taken(name: str) -> str:
    """Say that a placeholder can't stand there."""
    return f"`as: {name}`: that variable is the sandbox's own; give the placeholder another"
