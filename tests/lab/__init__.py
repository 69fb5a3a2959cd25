"""A local internet for tests, the demo and the bench. `Lab` is the entry point; `Name` holds the DNS records of a name.

The lab does not depend on Exeat, except for the names of kernel calls; any program can run in it.
"""

from .lab import Lab, LabError, Packets
from .names import Name

__all__ = ["Lab", "LabError", "Name", "Packets"]
