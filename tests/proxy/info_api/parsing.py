"""A request to the info API read in one go, for tests of what becomes of it."""

from proxy.info_api.requests import ASKING, begun, whole


def parse(data, counter=ASKING):
    """The request that `data` begins with; None while it isn't whole."""
    head = begun(data, counter)
    return None if head is None else whole(head, bytearray(data))
