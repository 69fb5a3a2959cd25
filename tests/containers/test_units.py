"""The units for systemd say what the service does."""

import configparser
from pathlib import Path

import pytest

from enforcer.cli import COMMANDS
from enforcer.cli.parsing import Parser
from enforcer.cli.service import UP_ARGUMENTS

UNITS = Path(__file__).resolve().parents[2] / "containers" / "systemd"
# systemd.exec(5): each of these, and those that begin like them, gives the service a mount namespace of its own
APART = ("Protect", "Private", "ReadOnly", "ReadWrite", "Inaccessible", "NoExec", "Exec", "Bind", "Temporary", "Root")
HARMLESS = {"ExecStart", "ExecReload", "PrivateUsers"}


def unit(path):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(UNITS / path)
    return parser


@pytest.mark.parametrize("folder", [".", "user"])
def test_service_unit_starts_in_the_hosts_mount_namespace(folder):
    service = unit(f"{folder}/exeat.service")["Service"]
    program, command, *words = service["ExecStart"].split()
    assert (program.rpartition("/")[2], command in COMMANDS) == ("exeat", True)
    Parser.of("up", UP_ARGUMENTS).parse_args(words)
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) >= 10
    assert not [key for key in service if key.startswith(APART) and key not in HARMLESS]


@pytest.mark.parametrize(("folder", "path"), [(".", "/run/exeat/control"), ("user", "%t/exeat/control")])
def test_socket_unit_is_private_and_where_clients_connect(folder, path):
    listening = unit(f"{folder}/exeat.socket")["Socket"]
    assert dict(listening) == {"ListenSequentialPacket": path, "SocketMode": "0600", "DirectoryMode": "0700"}
