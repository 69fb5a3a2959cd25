"""The namespaces alone, without the system call filter, must refuse what the filter refuses first."""

import json
import sys
from pathlib import Path

from enforcer.sandbox.step_lists import NUMBERS
from tests.enforcer.escapes.table import put

TERMINAL = ("TIOCSTI", "TIOCLINUX", "TIOCCONS", "TIOCSETD")
HERE = Path(__file__).parent
# What only the filter stops: no namespace closes these, so it is not here that they are refused.
FILTERED_ONLY = {
    "a_ring",
    "a_virtual_machine_socket",
    "have_the_kernel_run_a_helper",
    "an_sctp_socket",
    "a_setuid_program_on_the_host_s_disk",
    "push_into_the_terminal",
    "a_ping_socket",
    "flush_the_ruleset",
    "families_of_sockets",
    "protocols_of_netlink",
    "set_id_bits_by_any_call",
    "data_that_is_code",
    "flow_labels",
    "keys_for_segments",
    "huge_pages",
}
# Calls with nothing in them: without the filter each kernel has its own word for that.
EMPTY = {*NUMBERS["x86_64"], *(f"{name}{high}" for name in TERMINAL for high in ("", "_high_bits"))}


def test_escapes_are_refused_without_the_seccomp_filter(someone):
    put(someone)
    python = Path(sys.base_prefix) / "bin" / "python3"
    done = someone.run([sys.executable, HERE / "without_filter.py", someone.work, python, "places.py", "[]"])
    said = json.loads(done.stdout or done.stderr)
    got = {name: result for name, result in said.items() if not result.startswith("refused: ")}
    assert got.keys() - EMPTY <= FILTERED_ONLY, got
    assert said["a_namespace_of_one_s_own"] == "refused: ENOSPC"  # the outer namespace allows the task's own, no other
    assert said["steal_a_descriptor_of_init"] == "refused: EPERM"
    assert said["read_init_memory"] == "refused: EACCES"
