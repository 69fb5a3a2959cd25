"""Users and environment in the lab, and its end: nothing of the machine is visible, nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import Lab, LabError, Name
from tests.lab.host_clients import USERS, curl, python


def test_ordinary_user_has_no_groups_or_capabilities(lab):
    program = (
        "groups, status = os.getgroups(), open('/proc/self/status').read()\n"
        "print(json.dumps([os.getuid(), os.getgid(), groups, 'CapEff:\\t0000000000000000' in status, os.getcwd(), os.environ['HOME']]))"
    )
    home = str(lab.home(Lab.ORDINARY))
    assert python(lab, program, user=Lab.ORDINARY) == [Lab.ORDINARY, Lab.ORDINARY, [], True, home, home]
    assert lab.home(Lab.ORDINARY).stat().st_uid == Lab.ORDINARY


@pytest.mark.parametrize("user", USERS)
def test_interpreter_and_project_are_importable_for_every_user(lab, user):
    program = "import dns, mitmproxy, rules, proxy; print(json.dumps([sys.prefix, os.path.dirname(rules.__file__)]))"
    assert python(lab, program, user=user) == [sys.prefix, str(Path(__file__).parents[2] / "rules")]


def test_ordinary_user_cannot_see_root_home(lab):
    program = "print(json.dumps([name for name in os.listdir('/root')]))"
    assert set(python(lab, program, user=Lab.ORDINARY)) <= {".pyenv"}


@pytest.mark.parametrize("user", USERS)
def test_only_lab_resolver_and_devices_are_visible(lab, user):
    """Resolver configuration and devices are those of the lab, not of the machine."""
    visible = python(
        lab,
        "print(json.dumps([open('/etc/resolv.conf').read(), [name for _, name in socket.if_nameindex()]]))",
        user=user,
    )
    assert visible == ["nameserver 203.0.113.53\noptions timeout:1 attempts:2\n", ["lo", "lab0"]]


def test_files_of_the_machine_are_unchanged(lab):
    assert "203.0.113.53" not in Path("/etc/resolv.conf").read_text()
    assert "listed.example" not in Path("/etc/hosts").read_text()


def test_run_passes_input_environment_and_working_directory(lab):
    done = lab.run(["sh", "-c", "cat; echo $COLOUR; pwd"], input="in\n", env={"COLOUR": "blue"}, cwd="/usr")
    assert done.stdout == "in\nblue\n/usr\n"
    assert lab.run(["sh", "-c", "exit 3"]).returncode == 3


def test_program_over_its_timeout_is_killed_with_its_children(lab):
    with pytest.raises(subprocess.TimeoutExpired):
        lab.run(["sh", "-c", f"sleep 987.{os.getpid()} & wait"], timeout=0.5)
    assert not processes_with(f"sleep 987.{os.getpid()}")


def test_error_of_an_origin_raises_lab_error(lab):
    with pytest.raises(LabError, match="KeyError: 'nonsense'"):
        lab.origin._command(what="nonsense")


def processes_with(text):
    """Return the pids of processes whose arguments hold the text."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in argv and int(pid) != os.getpid():
            found.append(int(pid))
    return found


def eventually(check):
    for _ in range(100):
        if check():
            return True
        time.sleep(0.05)
    return False


def test_closed_lab_leaves_nothing_behind(lab):
    before = len(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text()
    with Lab({"good.example": Name.at("93.184.216.34")}) as other:
        directory = other.directory
        assert curl(other, "https://good.example/").returncode == 0
        assert processes_with(str(directory))
    assert not directory.exists()
    assert eventually(lambda: not processes_with(str(directory)))
    assert (len(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text()) == before


def test_lab_ends_with_the_process_that_made_it(lab):
    slept = f"sleep 986.{os.getpid()}"  # unique to this run
    program = (
        "import time\nfrom tests.lab import Lab, Name\n"
        "with Lab({'good.example': Name.at('93.184.216.34')}) as lab:\n"
        f"    with lab.start(['sh', '-c', 'echo; exec {slept}'], user=lab.ORDINARY, stdout=-1) as task:\n"
        "        task.stdout.readline()\n        print(lab.directory, flush=True)\n        time.sleep(60)\n"
    )
    command, root = [sys.executable, "-c", program], Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as maker:
        directory = maker.stdout.readline().strip()
        before = bool(processes_with(directory)), bool(processes_with(slept))
        maker.send_signal(signal.SIGKILL)
    assert before == (True, True)
    assert eventually(
        lambda: not processes_with(directory) and not processes_with(slept) and not Path(directory).exists()
    )


def test_failed_start_leaves_nothing_behind(monkeypatch, tmp_path, lab):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(LabError, match="could not be made"):
        Lab({}, hosts={"name": "not ascii: \u00e9"}).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_lab_without_root_raises_lab_error(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        Lab({}).__enter__()
