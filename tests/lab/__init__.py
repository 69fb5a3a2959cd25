"""A local internet for tests, the demo and the bench. `Lab` is the door; `Name` is what its DNS says of a name.

Nothing here knows Exeat, except that it borrows the names of kernel calls: what is run in it can be any program.
"""

from .lab import Lab, LabError, Packets
from .names import Name

__all__ = ["Lab", "LabError", "Name", "Packets"]
