"""Holes that were published of other sandboxes, and what tries each here: attempts of `table`, or a test elsewhere."""

from typing import Final

_SWAPPED: Final = "escapes/test_interplay.py::test_swapped_directories_lead_no_start_outside"
_CACHES: Final = "escapes/test_interplay.py::test_link_in_a_cache_leads_no_other_task_to_the_host"
_WORDS: Final = "sandbox/test_task_start.py::test_arguments_and_variables_arrive_unchanged"
_GROUPS: Final = "limits/test_limited_runs.py::test_cgroups_are_unreachable_from_inside"

# By what they are published as: whose hole it was, what it was, and what tries it.
ADVISORIES: Final = {
    # bubblewrap, and flatpak with it
    "CVE-2016-8659": ("who sets a sandbox up could be traced from inside", "trace_init read_init_memory"),
    "CVE-2017-5226": ("keys pushed into the caller's terminal", "TIOCSTI push_into_the_terminal"),
    "CVE-2019-10063": ("the same, by bits that the filter didn't look at", "TIOCSTI_high_bits TIOCLINUX_high_bits"),
    "CVE-2019-12439": ("a directory in /tmp that anybody could make before", "layers_named_in_mountinfo old_roots"),
    "CVE-2020-5291": ("privileges kept where it was set-user-ID", "gain_by_a_setuid_program capabilities_again"),
    "CVE-2024-42472": ("a link in what is kept leads to the host's files", _CACHES),
    # firejail
    "CVE-2017-5206": ("system calls let through for a debugger", "trace_init a_call_of_another_abi"),
    "CVE-2019-12499": ("its own program, cut off from inside", "overwrite_the_program_of_init"),
    "CVE-2019-12589": ("filters that could be written inside", "write_init_memory_from_afar read_init_memory"),
    "CVE-2020-17367": ("words of a command that a shell took apart", _WORDS),
    "CVE-2021-26910": ("a link put in between look and mount", _SWAPPED),
    "CVE-2022-31214": ("a namespace that pretended to be a sandbox's", "join_init_by_a_pidfd enter_init_s_network"),
    # runc, containerd, and what containers let through
    "CVE-2016-9962": ("descriptors of who enters, stolen from inside", "steal_a_descriptor_of_init list_init_descriptors"),
    "CVE-2018-18955": ("a nested user namespace that had more than its own", "a_namespace_of_one_s_own unshare_user"),
    "CVE-2019-5736": ("the program that enters, overwritten from inside", "overwrite_the_program_of_init"),
    "CVE-2020-15257": ("an abstract socket of the host's network", "an_abstract_socket_of_the_host"),
    "CVE-2022-0185": ("a hole behind fsconfig(2), which nobody in there needs", "fsconfig fsopen"),
    "CVE-2022-0492": ("release_agent, written by who had made namespaces", _GROUPS),
    "CVE-2024-21626": ("a directory of the host's left open", "descriptors_left_open"),
    "shocker": ("files of the host by their handles", "open_by_handle_at the_host_s_root_by_a_handle"),
}  # fmt: skip
