"""Ports by their number, that no program beside can take in the meantime."""

import random
import socket
from pathlib import Path


def free_port(*addresses, kind=socket.SOCK_STREAM):
    """A port that is free at these addresses, or at 127.0.0.1.

    One that the kernel chose is free once it is closed, and the kernel may choose it again for whoever connects next;
    so it is taken from below those that it chooses from (ip_sysctl: ip_local_port_range), and at random.
    """
    chosen_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    while True:
        port = random.randrange(max(chosen_from // 4, 1024), max(chosen_from, 2048))
        if all(_is_free(address, port, kind) for address in addresses or ("127.0.0.1",)):
            return port


def _is_free(address, port, kind):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        try:
            sock.bind((address, port))
        except OSError:
            return False
    return True
