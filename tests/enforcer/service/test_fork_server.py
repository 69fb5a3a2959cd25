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


def test_who_is_forked_is_the_services_own_child_and_holds_nothing_of_what_that_has_open():
    found = seen("children")
    each = {"right": True, "few": True, "status": ENDED}
    assert found == {"found": [{**each, "ahead": True}, {**each, "ahead": False}], "few": True, "pid": 0, "left": []}


def test_one_that_dies_is_replaced_and_who_it_has_forked_goes_on():
    assert seen("deaths") == {"different": True, "after": 0, "statuses": [ENDED] * 3, "left": []}


def test_who_was_forked_is_known_though_nobody_could_say_so():
    assert seen("unheard") == {"right": True, "status": ENDED, "left": []}


def test_nobody_else_has_the_memory_in_which_it_is_said_whom_it_forked():
    """A worker that was broken into could say there which processes are the service's own, to be killed in the end."""
    assert seen("shared") == {"shared": [True, True, False, False], "statuses": [ENDED] * 2, "left": []}


def test_what_is_said_of_one_fork_is_never_taken_for_the_next_ones():
    assert seen("out_of_step") == {"failed": True, "right": True, "status": ENDED}


def test_one_that_does_not_go_on_is_replaced_and_the_service_waits_no_longer_than_that_takes():
    found = seen("stopped")
    assert found.pop("failed").startswith("a process for a run can't be forked: the fork server ends")
    assert found == {"statuses": [ENDED] * 2, "bounded": True, "left": []}


def test_a_fork_that_fails_says_why_and_with_other_rules_another_one_forks():
    found = seen("refused")
    assert found.pop("failed").startswith("12 a process for a run can't be forked: ")
    assert found == {"different": True, "known": 2, "status": ENDED, "left": []}


def test_with_the_service_all_of_them_end():
    assert seen("orphans") == {"there": []}
