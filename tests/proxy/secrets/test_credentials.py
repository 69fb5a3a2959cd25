"""Which header fields count as credentials by their names."""

import pytest

from proxy.secrets.credentials import holds_key

NAMES = [
    (b"authorization", True),
    (b"x-api-key", True),
    (b"x-auth-token", True),
    (b"session-token", True),
    # Identifiers of a conversation, which agents send beside their key:
    (b"session-id", False),
    (b"session_id", False),
    (b"x-claude-code-session-id", False),
    (b"x-session-id-token", True),
    (b"content-type", False),
]


@pytest.mark.parametrize(("name", "is_key"), NAMES, ids=[name.decode() for name, _ in NAMES])
def test_credential_fields_are_recognised_by_name(name, is_key):
    assert holds_key(name) is is_key
