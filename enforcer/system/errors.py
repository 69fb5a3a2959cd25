"""Errors that keep a task from starting, by whose fault they are. A command prints each as one sentence."""


class ExeatError(Exception):
    """One sentence for a person: what failed, where, what to do next. `status` is the exit status of the command."""

    status = 125


class HostError(ExeatError):
    """This machine lacks or denies something: a kernel feature, a permission, a free port, disk space."""

    def __init__(self, what: str, remedy: str = "") -> None:
        """Take what is wrong and, if known, what to do; the message joins both."""
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what, self.remedy = what, remedy


class UsageError(ExeatError):
    """Invalid command line, or a broken rule file."""

    status = 2
