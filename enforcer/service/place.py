"""Where the service listens. Imported by every `exeat run`, so it imports nothing.

A user's service serves that user, and root's serves root: who asks is known from the socket (`peers`), and who answers
is checked too, because the request has the caller's environment in it.
"""

import os

VARIABLE = "EXEAT_CONTROL"  # another place for the socket; for who starts the service and who asks it alike
_NAME = "control"


def control() -> str:
    """Return the path of the control socket; empty where there is no place for one."""
    if named := os.environ.get(VARIABLE):
        return named if named.startswith("/") else ""
    if os.geteuid() == 0:
        return f"/run/exeat/{_NAME}"
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    # The XDG Base Directory Specification: a relative path is invalid and is ignored.
    return f"{base}/exeat/{_NAME}" if base.startswith("/") else ""
