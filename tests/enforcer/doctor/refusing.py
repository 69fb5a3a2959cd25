"""Runs a program that is refused a system call: `python refusing.py ERRNO CALL ARGUMENT VALUE PROGRAM...`.

ARGUMENT counts from 0, and the call is refused where it has this VALUE: as by a security module, or by a kernel without
something that this one has.
"""

import errno
import os
import sys

from enforcer.sandbox import seccomp
from enforcer.system import linux

if __name__ == "__main__":
    number, call, argument, value, *program = sys.argv[1:]
    refused = seccomp.Refuse(call, getattr(errno, number), (seccomp.ArgumentTest(int(argument), value=int(value)),))
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.load_seccomp(seccomp.assemble(seccomp.Filter((refused,)), linux.platform_machine()))
    os.execv(program[0], program)
