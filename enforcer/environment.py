"""The environment of a task: clean by default, with the sandbox's roots of trust put before every common client.

Only names that carry no credential are taken over from the caller; anything else is named with `--env`.
"""

from collections.abc import Mapping, Sequence

from enforcer.errors import UsageError
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.view import JAVA_STORE
from rules.own_names import DESK
from rules.own_variables import BUNDLE, JAVA, LOCALE, SYSTEM_STORE, TAKEN, TELEMETRY, taken
from rules.sandbox import NO_BOX, Box
from rules.selectors import Pattern

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PLAIN = frozenset({"C", "POSIX"})  # locales of bytes that stand for nothing but ASCII

# Java has only this. It says so on stderr whenever it starts; what a command line says comes after it and wins.
_JAVA = f"-Djavax.net.ssl.trustStore={JAVA_STORE} -Djavax.net.ssl.trustStoreType=PKCS12"


def build(
    caller: Mapping[str, str], identity: Identity, bundle: str, named: Sequence[str], box: Box = NO_BOX
) -> dict[str, str]:
    """Make a task's environment. `named` are `NAME` (taken over) or `NAME=VALUE`. Raises UsageError.

    What is kept of the caller's never stands before what the sandbox says for itself; what is set does.
    """
    own = {name: value for name, value in caller.items() if name in TAKEN or name.startswith(LOCALE)}
    own.update((name, caller[name]) for name in kept(caller, box.keep))
    own.setdefault("PATH", _PATH)
    if not own.get("LC_ALL") and (own.get("LC_CTYPE") or own.get("LANG") or "C") in _PLAIN:
        own["LC_CTYPE"] = "C.UTF-8"  # else it would depend on whether an interpreter has been there before (PEP 538)
    own.update(
        HOME=identity.home,
        USER=identity.user,
        LOGNAME=identity.user,
        SHELL="/bin/sh",
        TMPDIR="/tmp",
    )
    own.update(dict.fromkeys(BUNDLE, bundle))
    own.update({**SYSTEM_STORE, JAVA: _JAVA, TELEMETRY: f"http://{DESK}:4318", **dict(box.variables)})
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


def asked(caller: Mapping[str, str], named: Sequence[str], box: Box) -> set[str]:
    """List the variables that options and rule files give a task, beside what every task gets."""
    return {*(entry.partition("=")[0] for entry in named), *kept(caller, box.keep), *dict(box.variables)}


def kept(caller: Mapping[str, str], globs: Sequence[str]) -> list[str]:
    """List the caller's variables that some globs keep."""
    patterns = [Pattern.parse(glob) for glob in globs]
    return [name for name in caller if name and any(pattern.matches(name) for pattern in patterns)]


def add_placeholders(variables: dict[str, str], placeholders: object) -> None:
    """Give a task the placeholders of its secrets, by variable. Raises UsageError for a variable that is taken."""
    for name, placeholder in (placeholders if isinstance(placeholders, dict) else {}).items():
        if name in variables:
            raise UsageError(taken(name))
        variables[str(name)] = str(placeholder)
