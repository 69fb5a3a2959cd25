"""What runs are forked from: whose children they are, what they hold, and what becomes of it when it dies or hangs."""

import json
import subprocess
import sys

ENDED = 7  # a child's status that was told to end


def seen(scenario):
    program = [sys.executable, "-m", "tests.enforcer.service.fork_servers", scenario]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_forked_process_is_a_child_without_open_files():
    found = seen("children")
    each = {"right": True, "few": True, "status": ENDED}
    assert found == {"found": [{**each, "ahead": True}, {**each, "ahead": False}], "few": True, "pid": 0, "left": []}


def test_dead_fork_server_is_replaced_and_its_children_continue():
    assert seen("deaths") == {"different": True, "after": 0, "statuses": [ENDED] * 3, "left": []}


def test_pid_is_known_without_a_reply():
    assert seen("unheard") == {"right": True, "status": ENDED, "left": []}


def test_shared_page_is_mapped_by_nobody_else():
    """A worker that was broken into could say there which processes are the service's own, to be killed in the end."""
    assert seen("shared") == {"shared": [True, True, False, False], "statuses": [ENDED] * 2, "left": []}


def test_late_reply_is_never_taken_for_the_next_fork():
    assert seen("out_of_step") == {"failed": True, "right": True, "status": ENDED}


def test_hanging_fork_server_is_replaced():
    found = seen("stopped")
    assert found.pop("failed").startswith("a process for a run can't be forked: the fork server ends")
    assert found == {"statuses": [ENDED] * 2, "bounded": True, "left": []}


def test_failed_fork_has_its_errno_and_new_rules_a_new_server():
    found = seen("refused")
    assert found.pop("failed").startswith("12 a process for a run can't be forked: ")
    assert found == {"different": True, "known": 2, "status": ENDED, "left": []}


def test_fork_server_ends_with_the_service():
    assert seen("orphans") == {"there": []}
