"""Run a program with a connection to the registry as its standard output, and as descriptor 7: somebody was careless."""

import os
import sys

from enforcer.approvals import client

connection = client.connected()
for number in (1, 7):
    os.dup2(connection.fileno(), number, inheritable=True)
os.execvp(sys.argv[1], sys.argv[1:])
