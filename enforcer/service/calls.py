"""What happens to a caller while its task runs elsewhere: signals, a window of another size, keys that are typed."""

import _signal  # what signal wraps, whose enumerations take long to make
import os

from enforcer.system.terminals import Terminals

SI_KERNEL = 0x80  # siginfo(7): sent by the kernel, which for these signals means the terminal
FORWARDED: frozenset[int] = frozenset(
    {
        _signal.SIGINT,
        _signal.SIGTERM,
        _signal.SIGHUP,
        _signal.SIGQUIT,
        _signal.SIGUSR1,
        _signal.SIGUSR2,
        _signal.SIGALRM,
        _signal.SIGCONT,
    }
)
WATCHED = FORWARDED | {_signal.SIGWINCH}  # of what comes to a caller
_CALL = b"signal"


def read(call: bytes) -> tuple[int, bool] | None:
    """Return the signal that a call is about, and whether a terminal sent it; None: it is no call."""
    word, _, rest = call.partition(b" ")
    number, _, terminal = rest.partition(b" ")
    if word != _CALL or not number.isdigit() or terminal not in (b"0", b"1"):
        return None
    return int(number), terminal == b"1"


class Calls:
    """One caller's."""

    def __init__(self) -> None:
        self._terminals = Terminals()
        self._carrier = 0  # the process that carries in what is typed

    def say(self, number: int, code: int) -> bytes:
        """Return what to tell of a signal."""
        # A shell that says SIGHUP because its terminal has gone away means the end, as the terminal itself does.
        hung_up = number == _signal.SIGHUP and self._terminals.have_gone()
        return b"%s %d %d" % (_CALL, number, code == SI_KERNEL or hung_up)

    def carry_in(self, primary: int) -> None:
        """Pass what is typed on to the task's terminal: only who is in this session may read it."""
        from enforcer.sandbox import stdio

        client = os.getpid()
        typed = stdio.with_keys(client)
        if typed is not None:
            self._carrier = os.fork()
            if self._carrier == 0:
                stdio.carry_in(typed, primary, client)
        os.close(primary)

    def end(self) -> None:
        """Carry in no more, and give the terminal back as it was."""
        if self._carrier:
            os.kill(self._carrier, _signal.SIGTERM)
            os.waitpid(self._carrier, 0)
            self._carrier = 0
