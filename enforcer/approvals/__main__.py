"""The registry of approvals, as a program: see `process`."""

from enforcer.approvals.process import main

main()
