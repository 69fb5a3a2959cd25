"""Runs a program that is refused a system call, by errno EPERM: `python refusing.py CALL ARGUMENT VALUE PROGRAM...`.

ARGUMENT counts from 0, and the call is refused where it has this VALUE: as a security module would, in a kernel that has none.
"""

import errno
import os
import sys

from enforcer import linux
from enforcer.sandbox import bpf

if __name__ == "__main__":
    call, argument, value, *program = sys.argv[1:]
    refused = bpf.Refuse(call, errno.EPERM, (bpf.Test(int(argument), value=int(value)),))
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.load_seccomp(bpf.assemble(bpf.Filter((refused,)), linux.platform_machine()))
    os.execv(program[0], program)
