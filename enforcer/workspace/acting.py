"""Acting in a workspace as its owner: what root does there for a task is never more than its owner may."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Look, read and write as this user and in this group alone; for an ordinary user, as that one.

    Only the effective ids change (seteuid(2)), so no other process of that user may trace or signal this one.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    groups, own = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own)
        os.setgroups(groups)
