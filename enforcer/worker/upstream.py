"""What the upstream proxy is told about who we are, as a start needs it: read outside of every sandbox, hidden in each.

Only a process that becomes a worker, or that reads for one, ever has it; the supervisor, which a task descends from,
knows where it lies and nothing else.
"""

import os
from typing import TYPE_CHECKING

from enforcer.sandbox.system_paths import shown_in
from enforcer.system.errors import HostError, UsageError
from proxy.dialling import proxy_auth

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rules.policy import Policy


def login(policy: "Policy") -> "proxy_auth.Login | None":
    """Return what the proxy is told; None: nothing. Raises HostError when the file can't be used."""
    path = policy.settings.upstream_auth
    if path is None:
        return None
    try:
        return proxy_auth.read(path)
    except proxy_auth.LoginError as error:
        raise HostError(str(error)) from error


def hidden(policy: "Policy", shown: "Iterable[str]") -> tuple[str, ...]:
    """Return the file that no sandbox may show, as it really lies; `shown`: the workspace, and what else is named.

    Raises UsageError where it lies in one of these: a host program that saves it anew would uncover it.
    """
    path = policy.settings.upstream_auth
    if path is None:
        return ()
    if (place := shown_in(path, shown)) is not None:
        raise UsageError(
            f"`{path}` (`upstream_auth`) lies in `{place}`, which the task is shown; keep it elsewhere, "
            "as in `/etc/exeat/`"
        )
    return (os.path.realpath(path),)
