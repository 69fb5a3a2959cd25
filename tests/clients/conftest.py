import os

import pytest

from tests.lab import Lab
from tests.support import harness

from .clients_lab import NAMES, RPC, WEBSOCKET, ClientsLab

# Clients that are large, or need a toolchain: `make clients` installs them and says where
collect_ignore = [] if os.environ.get("EXEAT_CLIENTS") else ["heavy"]


@pytest.fixture(scope="session", params=[pytest.param("", marks=pytest.mark.xdist_group("clients"), id="lab")])
def world():
    """One local internet for every client."""
    harness.needs_root()
    with Lab(NAMES, speaking=(5432,)) as lab:
        made = ClientsLab(lab)
        made.serve("tests.clients.origin", made.leaf("ws.example"), WEBSOCKET, made.leaf("rpc.example"), RPC, port=RPC)
        yield made
