"""Where a journal's next line goes: compiled code that tells of connections (`compiled/telling.c`) has this too."""

import ctypes


class Tail(ctypes.Structure):
    """The end of the segment that a writer has open. Times are in ns since 1970, sizes in bytes."""

    # struct tail
    _fields_ = (
        ("segment", ctypes.c_int64),  # descriptor; -1: none is open
        ("begins", ctypes.c_int64),  # what the segment may span
        ("ends", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("most", ctypes.c_int64),  # of the length; whoever comes then begins another segment
        ("lines", ctypes.c_int64),
        ("written", ctypes.c_int64),  # since the start, over all segments
        ("head", ctypes.c_char * 64),  # the hash of the last line
    )
