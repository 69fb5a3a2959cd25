"""Secrets of a rule file: reading one, checking those of all files together."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as Maps
from typing import TYPE_CHECKING, Final

from rules.loading.document import FilePlace, Listing, Mapping, Node, Scalar
from rules.loading.fields import (
    PATH,
    TEXT,
    WORD,
    Key,
    Reader,
    Schema,
    Section,
    many,
    mapping_of,
    one,
    one_or_more,
    parse_header_name,
    parse_slug,
    parse_variable_name,
    parser_of_shape,
    part,
    ref,
)
from rules.problems import Problem, did_you_mean, quote
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.addresses import parse_host
from rules.values.names import HostName, InvalidNameError

if TYPE_CHECKING:
    from rules.loading.cases import RuleTest
    from rules.rule import Rule

    type SecretsOfFile = tuple[
        str, tuple[tuple[Secret, Node], ...], tuple[RuleTest, ...]
    ]  # the file as the user named it


NEEDED: Final = ("id", "from", "hosts", "in")
_IN_WORDS: Final = ("basic", "aws", "client_certificate")

_ATTRIBUTE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
_HTTPS: Final = 443
# Headers that frame, route or negotiate, or that carry something else too.
_NEVER: Final = frozenset({
    "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "te", "trailer", "connection",
    "upgrade", "expect", "range", "cookie", "via", "accept", "accept-encoding", "user-agent", "referer", "origin",
    "proxy-authorization", "proxy-connection", "keep-alive",
})  # fmt: skip


_credential: Final = parser_of_shape(
    r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}", "is not the name of a credential (systemd.exec(5), LoadCredential=)"
)
# unreserved: one spelling (RFC 3986 section 2.3)
_parameter: Final = parser_of_shape(r"[A-Za-z0-9_.-]{1,64}", "must be letters, digits, `_`, `-` and `.`")
_prefix: Final = parser_of_shape(r"[A-Za-z0-9_.-]{1,32}", "must be at most 32 letters, digits, `_`, `-` and `.`")


def _check_combination(secret: Secret) -> Iterator[tuple[str, str]]:
    """Yield keys whose value is valid in itself but not for this secret, with the reason."""
    if own := next(filter(is_own_variable, secret.variables), None):
        yield "as", placeholder_objection(own)
    if secret.is_certificate and len(secret.slots) > 1:
        yield "in", "`client_certificate` stands alone: it is shown to servers and sent in no request"
    for key, values in (("as", secret.variable), ("prefix", secret.prefix), ("not_sent_to", secret.not_sent_to)):
        if secret.is_certificate and values:
            yield key, f"`{key}` is for what a task has a placeholder of, and of a client certificate it has none"
    if secret.signs and len(secret.slots) > 1:
        yield "in", "`aws` stands alone: what requests are signed with is sent nowhere"
    if secret.signs and secret.prefix:
        yield "prefix", "`prefix` is for values that are sent, and with `in: aws` none is"
    if both := next(filter(set(secret.hosts).__contains__, secret.not_sent_to), None):
        yield "not_sent_to", f"{quote(str(both[0]))} is also in its `hosts`: remove it from one of the two"


def _is_certificate(node: Node) -> bool:
    """Whether `in` is the text, or a list with it; other problems of `in` are reported where it is read."""
    each = node.items if isinstance(node, Listing) else [node]
    return any(isinstance(item, Scalar) and item.text == SlotKind.CLIENT_CERTIFICATE for item in each)


def _command(reader: Reader, node: Node, _: str) -> Source | None:
    if not isinstance(node, Listing):
        reader.complain(node, "`command` is a list, a program and its arguments: no shell reads it")
        return None
    words = [reader.text(item, "command") for item in reader.items(node, "command")]
    if not words or None in words:
        return None
    if words[0] and not words[0].startswith("/"):
        reader.complain(node.items[0], f"{quote(words[0])} must be a whole path, as in `/usr/bin/pass`")
        return None
    return Source(SourceKind.COMMAND, tuple(word for word in words if word))


def _keyring(reader: Reader, node: Node, _: str) -> Source | None:
    if not isinstance(node, Mapping) or not node.pairs:
        reader.complain(node, "`keyring` is a mapping, an item's attributes and their values: `{service: model}`")
        return None
    words: list[str] = []
    for name, (key, value) in sorted(node.pairs.items()):
        if not _ATTRIBUTE.fullmatch(name):
            reader.complain(key, f"{quote(name)} is not the name of an attribute")
            return None
        values = reader.parse(value, "keyring", _attribute)
        if values is None:
            return None
        words += [name, values]
    return Source(SourceKind.KEYRING, tuple(words))


def _header(text: str) -> str:
    name = parse_header_name(text)
    if name in _NEVER:
        raise ValueError(f"{quote(text)} is a header that can't carry a secret")
    return name


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{quote(text)} must be a whole path, as in `/etc/exeat/model.key`")
    return text


def _attribute(text: str) -> str:
    if text.startswith("-") or not text.isprintable():
        raise ValueError(f"{quote(text)} must be one line that doesn't begin with `-`")
    return text


def _host(text: str) -> tuple[HostName, int]:
    """Read a name, with a port unless it is 443. No pattern: anyone who can add names under it would get the secret."""
    name, colon, port = text.partition(":")
    if "*" in name:
        raise ValueError(f"{quote(text)} is a pattern: a secret is sent to hosts that are named one by one")
    if colon and not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 1 << 16):
        raise ValueError(f"{quote(text)} must be a name, or a name and a port, as in `api.model.example:8443`")
    try:
        host = parse_host(name)
    except InvalidNameError as error:
        raise ValueError(f"{quote(text)} is not a host: {error}") from error
    if not isinstance(host, HostName):
        raise ValueError(  # noqa: TRY004 - it is what was written that is wrong
            f"{quote(text)} is an address: a secret goes only where a certificate proves a name"
        )
    return host, int(port) if colon else _HTTPS


def _from(says: str, kind: SourceKind, parse: Callable[[str], str], schema: Schema) -> Key:
    """Make a key of one scalar."""

    def read(reader: Reader, node: Node, key: str) -> Source | None:
        word = reader.parse(node, key, parse)
        return None if word is None else Source(kind, (word,))

    return Key(says, read, schema)


_VARIABLE: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"}
FROM: Final = Section("from", "`from`", {
    "env": _from("A variable of the user who starts the task; with `in: aws` the prefix of three variables.",
        SourceKind.ENV, parse_variable_name, _VARIABLE),
    "file": _from("A file that only its owner can read.", SourceKind.FILE, _path, PATH),
    "command": Key("A program and its arguments; its output is the value.",
        _command, {"type": "array", "items": WORD, "minItems": 1}),
    "systemd": _from("The name of a credential that systemd passed on.", SourceKind.SYSTEMD, _credential, TEXT),
    "keyring": Key("Attributes of an item in the desktop's keyring.", _keyring, mapping_of(WORD, least=1)),
}, single="`from` says one place: `env`, `file`, `command`, `systemd` or `keyring`")  # fmt: skip
IN: Final = Section("in", "`in`", {
    "header": one("A header field: the value alone, or after one word as in `Bearer`.", _header, TEXT),
    "query": one("A parameter of the query.", _parameter, TEXT),
    "form": one("A field of a form that is posted, application/x-www-form-urlencoded.", _parameter, TEXT),
}, single="each place of `in` is one: `basic`, `aws`, a `header`, a `query` or a `form`")  # fmt: skip


def _source(reader: Reader, node: Node, _: str) -> Source | None:
    values = FROM.read(reader, node)
    return next(iter(values.values())) if values and len(values) == 1 else None


def _slots(reader: Reader, node: Node, key: str) -> tuple[Slot, ...] | None:
    found = {slot for item in reader.items(node, key) if (slot := _slot(reader, item)) is not None}
    return tuple(sorted(found)) or None


def _slot(reader: Reader, node: Node) -> Slot | None:
    if not isinstance(node, Scalar):
        values = IN.read(reader, node) or {}
        return next((Slot(SlotKind(kind), name) for kind, name in values.items()), None) if len(values) == 1 else None
    word = reader.text(node, "in")
    if word in _IN_WORDS:
        return Slot(SlotKind(word))
    if word is not None:
        known = "`basic`, `aws`, `client_certificate`, `{header: NAME}`, `{query: NAME}`, `{form: NAME}`"
        reader.complain(node, f"{quote(word)} is not a place in a request: {known}")
    return None


def _places(hosts: Iterable[tuple[HostName, int]]) -> tuple[tuple[HostName, int], ...]:
    return tuple(sorted(set(hosts)))


SECRET: Final = Section(
    "secret",
    "a secret",
    {
        "id": one("The id of the secret, for `credential`.", parse_slug),
        "from": part("Where its value is read from when a task starts.", FROM, _source, "source"),
        "as": one(
            "The task's variable for the placeholder; with `in: aws` the prefix of three variables.",
            parse_variable_name,
            _VARIABLE,
            "variable",
        ),
        "hosts": many(
            "Names of servers that the value is sent to, with a port unless it is 443.", _host, TEXT, _places
        ),
        "in": Key(
            "Where in a request: a header, the password of `basic`, a parameter; `aws` and `client_certificate`: "
            "nowhere.",
            _slots,
            one_or_more({"anyOf": [{"enum": [*_IN_WORDS]}, ref("in")]}),
            "slots",
        ),
        "prefix": one("How the value begins, if that is no secret; placeholders begin with it too.", _prefix, TEXT),
        "not_sent_to": many(
            "More servers that clients send the placeholder to: the gate blocks it there and reports no tampering.",
            _host,
            TEXT,
            _places,
        ),
    },
)


def read_secret(reader: Reader, node: Node) -> Secret | None:
    """Read one entry of `secrets`."""
    fields = SECRET.fields(reader, node)
    if fields is None:
        return None
    if missing := reader.lacking(node, SECRET.of, NEEDED, SECRET.keys):
        reader.complain(node, f"a secret needs {', '.join(f'`{key}`' for key in missing)}")
    if "as" not in fields and "in" in fields and not _is_certificate(fields["in"]):
        reader.complain(node, "a secret needs `as`")
        return None
    if any(key not in fields for key in NEEDED):
        return None
    values = SECRET.values(reader, fields)
    if not all(map(values.get, ("id", "source", "hosts", "slots"))):
        return None
    secret = Secret(**{"variable": "", **values})
    for key, objection in _check_combination(secret):
        reader.complain(fields[key], objection)
        return None
    return secret


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


def placeholder_objection(name: str) -> str:
    """Return the problem that a placeholder can't be in this variable."""
    return f"`as: {name}`: that variable is the sandbox's own; give the placeholder another"


_MOST: Final = 64


def merge_secrets(
    files: "Iterable[SecretsOfFile]", rules: "Iterable[Rule]", places: Maps[str, FilePlace], problems: list[Problem]
) -> list[Secret]:
    """Merge the secrets of all files. Adds problems with them, and with `credential` keys, to `problems`."""
    files, rules = list(files), list(rules)
    found: list[Secret] = []
    for shown, values, _ in files:
        for secret, node in values:
            if any(secret.id == other.id for other in found):
                problems.append(Problem(shown, node.line, node.column, f"a secret `{secret.id}` exists already"))
            taken = {variable for other in found for variable in other.variables}
            if shared := next((variable for variable in secret.variables if variable in taken), None):
                message = f"another secret has its placeholder in `{shared}` already"
                problems.append(Problem(shown, node.line, node.column, message))
            found.append(secret)
    if len(found) > _MOST:
        problems.append(Problem(files[0][0], 1, 1, f"more than {_MOST} secrets: remove those that no task needs"))
    known = [secret.id for secret in found]
    for rule in rules:
        named = (rule.credential, *(exemption.credential for exemption in rule.excepts))
        missing = {ident for ident in named if ident is not None and ident not in known}
        problems += [places[rule.id].problem(unknown_secret(ident, known)) for ident in missing]
    problems += _carried_by_none(found, rules, places)
    for case in (case for _, _, tests in files for case in tests):
        asked = case.question.request.credential if case.question.request else None
        if asked and asked not in known:
            problems.append(Problem(case.file, case.line, case.column, unknown_secret(asked, known)))
    return found


def _carried_by_none(
    found: Iterable[Secret], rules: "Iterable[Rule]", places: Maps[str, FilePlace]
) -> Iterator[Problem]:
    """Report rules whose `credential` is a secret that requests don't carry."""
    shown = {secret.id for secret in found if secret.is_certificate}
    for rule in rules:
        if rule.credential in shown or any(exemption.credential in shown for exemption in rule.excepts):
            message = "`credential` names a client certificate, which no request carries: the rule would match none"
            yield places[rule.id].problem(message)


def unknown_secret(ident: str, known: Sequence[str]) -> str:
    """Report that a named secret is not defined."""
    return f"there is no secret {quote(ident)}{did_you_mean(ident, known) or ': `secrets` say what there is'}"
