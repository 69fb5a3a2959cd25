"""Credentials of a task's rules: reads `secrets` and the upstream proxy's login, outside the sandbox.

Only the process that becomes the worker (or reads rules for one) reads values. The runner, from which the task
descends, gets placeholders and the paths of the files. No error contains a value; commands run without a shell.
"""

import os
import stat
from typing import TYPE_CHECKING, Final

from enforcer.sandbox.system_paths import containing_path
from enforcer.system.errors import HostError, UsageError
from proxy.dialing import proxy_auth
from rules.secrets import SourceKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from proxy.secrets import AwsKeys, SecretInjector
    from rules.matching.policy import Policy
    from rules.secrets import Secret

_MOST: Final = 65537  # bytes that are read of a value: one more than the most allowed
_COMMAND_TIMEOUT: Final = 15.0  # seconds for a command
_UNLOCK_TIMEOUT: Final = 90.0  # ... for one that may ask for a password
# libsecret's; not looked up on PATH, which may contain a directory that a task can write to
_KEYRING_TOOL: Final = ("/usr/bin/secret-tool", "/usr/local/bin/secret-tool", "/run/current-system/sw/bin/secret-tool")
_FORBIDDEN_MODE: Final = 0o077
_SYSTEMD_FORBIDDEN_MODE: Final = (
    0o027  # systemd lets a service's user read by an ACL, which shows as the group's (systemd.exec(5))
)


def read_secrets(policy: "Policy", environment: "Mapping[str, str]") -> "SecretInjector | None":
    """Read the values of all secrets; None if the policy has none. Raises HostError, which never contains a value."""
    if not policy.secrets:
        return None
    from proxy.secrets import Identity, SecretInjector, SecretValue, make_aws_keys, split_aws_keys

    values_read: list[SecretValue | AwsKeys | Identity] = []
    for secret in policy.secrets:
        values = _read_values(secret, environment)
        try:
            if secret.is_certificate:
                values_read.append(Identity(secret, values[0]))
            elif secret.signs:
                values_read.append(make_aws_keys(secret, values if len(values) > 1 else split_aws_keys(values[0])))
            else:
                values_read.append(SecretValue(secret, values[0].removesuffix(b"\n").removesuffix(b"\r")))
        except ValueError as error:
            raise HostError(f"the value of the secret `{secret.id}` can't be used: {error}") from None
    return SecretInjector(values_read)


def read_login(policy: "Policy") -> "proxy_auth.Login | None":
    """Return the login for the upstream proxy; None if the policy has none. Raises HostError for an unusable file."""
    path = policy.settings.upstream_auth
    if path is None:
        return None
    try:
        return proxy_auth.read(path)
    except proxy_auth.LoginError as error:
        raise HostError(str(error)) from error


def hidden_files(policy: "Policy", environment: "Mapping[str, str]", shown: "Iterable[str]") -> tuple[str, ...]:
    """Return the resolved paths of credential files, to be masked in every sandbox; `shown`: paths that the task sees.

    Raises UsageError if one lies in a shown path: a host program that saves it again would drop its mask. Also for a
    command in a shown path: the task could change a program that the host then executes.
    """
    found: list[str] = []
    shown = tuple(shown)
    if (login_file := policy.settings.upstream_auth) is not None:
        if (shown_path := containing_path(login_file, shown)) is not None:
            raise UsageError(
                f"`{login_file}` (`upstream_auth`) lies in `{shown_path}`, which the task is shown; keep it elsewhere, "
                "as in `/etc/exeat/`"
            )
        found.append(os.path.realpath(login_file))
    for secret in policy.secrets:
        kind, words = secret.source
        if kind is SourceKind.COMMAND:
            for word in words:
                _refuse_inside(word, shown, f"the command of the secret `{secret.id}` names `{word}`, which")
        elif kind in {SourceKind.FILE, SourceKind.SYSTEMD}:
            path = words[0] if kind is SourceKind.FILE else _systemd_path(words[0], environment)
            if path is not None:
                _refuse_inside(path, shown, f"`{path}`, the value of the secret `{secret.id}`,")
                found.append(os.path.realpath(path))
    return tuple(found)


def check_environment(policy: "Policy", names: "Collection[str]") -> None:
    """Raise UsageError for a variable that gives the task a secret's value, or takes a placeholder's name."""
    for secret in policy.secrets:
        if name := next((name for name in secret.variables if name in names), None):
            raise UsageError(
                f"the variable `{name}` is where the placeholder of `{secret.id}` goes: the task can't have it"
            )
        if name := next((name for name in secret.read_from if name in names), None):
            raise UsageError(f"the variable `{name}` would give the task the value of the secret `{secret.id}`")


def _refuse_inside(path: str, shown: "Iterable[str]", what: str) -> None:
    path = os.path.normpath(os.path.join("/", path))  # commands run in /, so their arguments may be relative to it
    if (shown_path := containing_path(path, shown)) is not None:
        raise UsageError(f"{what} lies in `{shown_path}`, which the task is shown; keep it elsewhere")


def _read_values(secret: "Secret", environment: "Mapping[str, str]") -> tuple[bytes, ...]:
    """Read a secret's values: one, or one for each of its variables; a session token may be missing."""
    if secret.source.kind is not SourceKind.ENV:
        return (_read_value(secret, environment),)
    found: list[bytes] = []
    for name in secret.read_from:
        value = environment.get(name)
        if not value and len(found) == 2:  # permanent keys have no token
            break
        if value is None:
            raise HostError(f"the secret `{secret.id}` is to come from the variable `{name}`, which is not set")
        found.append(value.encode("utf-8", "surrogateescape"))
    return tuple(found)


def _read_value(secret: "Secret", environment: "Mapping[str, str]") -> bytes:
    kind, words = secret.source
    if kind is SourceKind.FILE:
        return _read_file(words[0], secret, _FORBIDDEN_MODE)
    if kind is SourceKind.SYSTEMD:
        path = _systemd_path(words[0], environment)
        if path is None:
            raise HostError(
                f"the secret `{secret.id}` is to come from systemd, which has passed on no credentials "
                "(`LoadCredential=` in the unit)"
            )
        return _read_file(path, secret, _SYSTEMD_FORBIDDEN_MODE)
    if kind is SourceKind.KEYRING:
        return _read_keyring(secret, words)
    return _run_command(words, f"the command `{words[0]}` of the secret `{secret.id}`")


def _read_keyring(secret: "Secret", attributes: tuple[str, ...]) -> bytes:
    """Read a secret from the desktop's keyring (Secret Service of freedesktop.org), which may ask to be unlocked."""
    tool = next((path for path in _KEYRING_TOOL if os.access(path, os.X_OK)), None)
    if tool is None:
        raise HostError(
            f"the secret `{secret.id}` is to come from the keyring, and `secret-tool` is missing: "
            "`apt-get install libsecret-tools` (`libsecret` on other systems)"
        )
    pairs = zip(attributes[::2], attributes[1::2], strict=True)
    subject = f"the keyring's item with {', '.join(f'`{name}={value}`' for name, value in pairs)} for `{secret.id}`"
    hint = "it doesn't exist (`secret-tool store` makes one), stayed locked, or no desktop session runs"
    return _run_command((tool, "lookup", *attributes), subject, _UNLOCK_TIMEOUT, hint)


def _systemd_path(name: str, environment: "Mapping[str, str]") -> str | None:
    directory = environment.get("CREDENTIALS_DIRECTORY", "")
    return os.path.join(directory, name) if directory.startswith("/") else None


def _read_file(path: str, secret: "Secret", forbidden_mode: int) -> bytes:
    subject = f"`{path}`, the value of the secret `{secret.id}`,"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise HostError(f"{subject} is not a plain file")
            if status.st_uid not in (0, os.geteuid()):
                raise HostError(f"{subject} belongs to uid {status.st_uid}, not to root or uid {os.geteuid()}")
            if status.st_nlink != 1:
                raise HostError(f"{subject} has other names (hard links), where a task could be shown it; make a copy")
            if status.st_mode & forbidden_mode:
                mode = f"{stat.S_IMODE(status.st_mode):o}"
                raise HostError(f"{subject} is open to others (mode {mode}); run `chmod 600 {path}`, or change it too")
            return os.read(descriptor, _MOST)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HostError(f"{subject} can't be read: {(error.strerror or str(error)).lower()}") from error


def _run_command(words: tuple[str, ...], subject: str, timeout: float | None = None, hint: str = "") -> bytes:
    """Run a command and return its output, which is never shown. It is killed when its time is over."""
    import subprocess  # few files have a command

    timeout = _COMMAND_TIMEOUT if timeout is None else timeout
    try:
        process = subprocess.Popen(  # the admin's own, without a shell
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
        )
    except OSError as error:
        raise HostError(f"{subject} can't be run: {(error.strerror or str(error)).lower()}") from error
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise HostError(f"{subject} gave no output within {timeout:.0f} seconds") from None
    if process.returncode != 0:
        hint = hint or "run it by itself to see why"
        raise HostError(f"{subject} failed with status {process.returncode}; {hint}")
    return output[:_MOST]
