"""Errors before a task runs, sorted by whose fault they are. A command prints each as one sentence."""


class ExeatError(Exception):
    """One clear sentence for a person: what, where, what to do. `status` is the exit status it ends in."""

    status = 125


class HostError(ExeatError):
    """This machine lacks something or refuses it: a kernel feature, a permission, a free port, room on a disk."""

    def __init__(self, what: str, remedy: str = "") -> None:
        """Take what is wrong and, where it is known, what to do; as a sentence they are one."""
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what, self.remedy = what, remedy


class UsageError(ExeatError):
    """What was asked for makes no sense, or its rule file is broken."""

    status = 2
