"""Control client: sends one request to the service, and receives one or several answers."""

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from enforcer.service import protocol
from enforcer.system import control_socket
from enforcer.system.errors import HostError
from proxy.wire import message, strict_json

_PATIENCE: Final = 30.0  # seconds
_LARGEST: Final = 1 << 18  # bytes of a packet


def send_request(request: Mapping[str, object], descriptors: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Send a request to the service; returns its answers. Raises HostError when no service runs, or it refuses."""
    if not (path := control_socket.control_path()):
        remedy = "set XDG_RUNTIME_DIR (pam_systemd does), or EXEAT_CONTROL to an absolute path"
        raise HostError("the path of the service's socket is unknown", remedy)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(path)
        except OSError as error:
            raise HostError(f"no service listens on `{path}`", "start one with `exeat up`") from error
        if not control_socket.is_own_service(connection):
            raise HostError(
                f"the process that listens on `{path}` is another user's, or in a sandbox",
                "start your own with `exeat up`",
            )
        answers = []
        try:
            message.send_packet(
                connection, protocol.packet_head(protocol.ASK + json.dumps(request).encode()), descriptors
            )
            while packet := message.packet(connection, _LARGEST)[0]:
                word, _, rest = packet.partition(b" ")
                if word != b"answer":
                    raise HostError(rest.decode("utf-8", "replace"))
                answers.append(strict_json.loads(rest))
        except (OSError, ValueError) as error:
            raise HostError(f"the service on `{path}` does not answer", "see its log") from error
    return answers
