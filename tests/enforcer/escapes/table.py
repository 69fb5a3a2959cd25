"""Every attempt of `inside`, `doors` and `places`, by the errno that it is to be refused with.

Several: which it is depends on the kernel. Where an attempt observes instead of calling, it says so with an errno too.
"""

import json
from pathlib import Path
from typing import Final

from enforcer.sandbox.step_lists import NUMBERS
from enforcer.system import linux

_BY_ERRNO: Final = {
    "EACCES": """
        read_init_memory list_init_descriptors look_through_init_s_root enter_init_s_network a_raw_socket
        a_ping_socket an_sctp_socket all_of_init_in_proc overwrite_the_program_of_init what_only_the_host_should_read
        counts_of_the_host
    """,
    "EACCES ENOENT": """
        read_shadow
    """,
    "EACCES EPERM": """
        a_device_node
    """,
    "EAFNOSUPPORT": """
        a_virtual_machine_socket a_packet_socket flush_the_ruleset families_of_sockets protocols_of_netlink
    """,
    "EBADF": """
        descriptors_left_open
    """,
    "ECONNREFUSED": """
        host_sockets_and_pipes an_abstract_socket_of_the_host
    """,
    "EINVAL": """
        become_root new_privileges somebody_else_s_files huge_pages
    """,
    "ENOENT": """
        other_users_files secrets_in_the_environment above_the_root old_roots layers_named_in_mountinfo
        kernel_file_systems groups_of_processes_above device_nodes doors_in_the_environment sockets_of_others
    """,
    "ENOPROTOOPT": """
        filters_on_sockets flow_labels keys_for_segments
    """,
    "ENOBUFS": """
        groups_without_end
    """,
    "ENOSPC": """
        all_terminals_of_the_machine
    """,
    "ENOSYS": """
        a_ring cachestat clone3 io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
        io_uring_enter io_uring_register io_uring_setup listmount modify_ldt openat2 statmount
        a_call_of_another_abi
    """,
    "EPERM": """
        steal_a_descriptor_of_init trace_init write_init_memory_from_afar end_init have_the_kernel_run_a_helper
        a_namespace_of_one_s_own a_network_of_one_s_own another_interface be_transparent mark_packets mount_something
        take_a_cover_away a_setuid_program_on_the_host_s_disk gain_by_a_setuid_program capabilities
        push_into_the_terminal acct add_key bpf chroot clock_settime delete_module fanotify_init finit_module fsconfig
        fsmount fsopen fspick init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie
        migrate_pages mount mount_setattr move_mount move_pages open_by_handle_at open_tree open_tree_attr
        perf_event_open pidfd_getfd pivot_root quotactl quotactl_fd reboot request_key setdomainname sethostname setns
        settimeofday swapoff swapon syslog umount2 uselib userfaultfd vhangup unshare_time unshare_time_high_bits
        unshare_mount unshare_mount_high_bits clone_mount unshare_cgroup unshare_cgroup_high_bits clone_cgroup
        unshare_uts unshare_uts_high_bits clone_uts unshare_ipc unshare_ipc_high_bits clone_ipc unshare_user
        unshare_user_high_bits clone_user unshare_pid unshare_pid_high_bits clone_pid unshare_network
        unshare_network_high_bits clone_network join_init_by_a_pidfd the_host_s_root_by_a_handle options_of_sockets
        TIOCSTI TIOCSTI_high_bits TIOCLINUX TIOCLINUX_high_bits TIOCCONS TIOCCONS_high_bits TIOCSETD
        TIOCSETD_high_bits a_call_of_another_architecture data_that_is_code the_lowest_page the_clock
        capabilities_again ambient_capabilities real_time ids_and_clocks_of_one_s_own namespaces_above
        devices_made_anywhere attributes_that_give_rights set_id_bits_by_any_call a_program_in_memory
        end_init_by_other_calls groups_one_is_not_in a_core_for_the_host_s_helper
    """,
    "EROFS": """
        own_the_core_pattern write_system_files write_etc write_the_root settings_of_the_kernel shared_devices_changed
        write_what_is_only_mapped
    """,
    "EROFS ENOENT": """
        press_a_magic_key
    """,
    "ESRCH": """
        host_processes signals_to_others
    """,
    "EXDEV": """
        a_set_id_program_by_a_link
    """,
}
REFUSALS: Final = {name: errnos.split() for errnos, names in _BY_ERRNO.items() for name in names.split()}
# Ways to somebody of the host's, or into a program; the values are nobody's.
VARIABLES: Final = {
    **dict.fromkeys(("DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS"), "unix:path=/nobody/listens"),
    **dict.fromkeys(
        ("SSH_AUTH_SOCK", "GPG_AGENT_INFO", "XAUTHORITY", "KUBECONFIG", "NOTIFY_SOCKET"), "/nobody/listens"
    ),
    **dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY"), ":77"),
    **dict.fromkeys(("DOCKER_HOST", "CONTAINER_HOST"), "unix:///nobody/listens"),
    **dict.fromkeys(("CREDENTIALS_DIRECTORY", "LD_LIBRARY_PATH"), "/nothing/there"),
    "LD_PRELOAD": "libresolv.so.2",  # which is everywhere, and does nothing by itself
    "LISTEN_FDS": "1",
}
# What it takes to run Exeat from here at all
ALWAYS_THERE: Final = ("EXEAT_CONTROL", "PYTHONPATH", "XDG_STATE_HOME")


def astray(said):
    """Return what came of each attempt that wasn't refused as it should be, or that isn't in the table."""
    expected = {name: {f"refused: {errno}" for errno in errnos} for name, errnos in REFUSALS.items()}
    return {name: result for name, result in said.items() if result not in expected.get(name, ())}


def put(someone):
    """Put the attempts where a task finds them; `places` is what it is to run."""
    for name in ("inside.py", "doors.py", "places.py"):
        someone.write(someone.work / name, Path(__file__).with_name(name).read_text())
    someone.write(someone.work / "variables.json", json.dumps([*VARIABLES, *ALWAYS_THERE]))
    someone.write(someone.work / "numbers.json", json.dumps(NUMBERS[linux.platform_machine()]))
