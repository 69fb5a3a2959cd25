"""A request to the info API read in one go, for tests of what becomes of it."""

from proxy.info_api.requests import QUESTIONS, read_head, read_request


def parse(data, port=QUESTIONS):
    """The request that `data` begins with; None while it isn't whole."""
    head = read_head(data, port)
    return None if head is None else read_request(head, bytearray(data))
