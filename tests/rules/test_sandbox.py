"""Devices that a rule may give to a task, and the reason for each that it may not."""

import pytest

from rules.problems import RuleFileError
from rules.sandbox import SandboxSettings, includes_device, is_card, parse_device
from tests.rules.rule_texts import loaded, policy

GIVEN = ["kvm", "gpu", "dri/renderD128", "kfd", "nvidia0", "nvidia15", "nvidiactl", "nvidia-uvm", "accel/accel0"]
REFUSED = [
    # what a task would do with it
    ("mem", "the host's memory"),  # read and write all of it
    ("port", "the host's memory"),
    ("cpu/0/msr", "the host's memory"),
    ("kmsg", "the host's memory"),  # addresses and what others do
    ("sda", "a disk holds"),  # every file, past its owner
    ("nvme0n1p1", "a disk holds"),
    ("loop-control", "a disk holds"),
    ("mapper/secret", "a disk holds"),
    ("vfio/vfio", "controls hardware"),  # direct memory access
    ("bus/usb/001/001", "controls hardware"),
    ("nvme0", "controls hardware"),  # firmware
    ("fuse", "can't mount"),
    ("net/tun", "past the gate"),
    ("vhost-net", "past the gate"),
    ("vhost-vsock", "past the gate"),
    ("vsock", "past the gate"),
    ("ttyUSB0", "past the gate"),  # a modem, or another computer
    ("tty1", "a keyboard, mouse or screen"),  # TIOCSTI, and a console's selection
    ("console", "a keyboard, mouse or screen"),
    ("vcs1", "a keyboard, mouse or screen"),
    ("uinput", "a keyboard, mouse or screen"),
    ("input/event0", "a keyboard, mouse or screen"),
    ("snd/pcmC0D0c", "hears or sees"),
    ("video0", "hears or sees"),
    ("dri/card0", "name its render node"),  # GEM names are guessed
    ("nvidia-modeset", "sets displays"),
    ("nvidia-uvm-tools", "sets displays"),
    ("null", "every task has its own"),
    ("pts/0", "every task has its own"),
    ("something", "none of those"),
    ("", "none of those"),
    ("KVM", "none of those"),
    ("kvm/../mem", "none of those"),
    ("dri/renderD128/../../mem", "name its render node"),
    ("../etc/shadow", "none of those"),
    ("kvm\n", "none of those"),
    ("nvidia0\n", "sets displays"),
    ("*", "none of those"),
]


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("prefix", ["", "/dev/"])
def test_listed_device_is_parsed_by_name(name, prefix):
    assert parse_device(prefix + name) == name
    assert is_card(name) is (name not in {"kvm", "gpu"})


@pytest.mark.parametrize(("name", "why"), REFUSED)
@pytest.mark.parametrize("prefix", ["", "/dev/"])
def test_unlisted_device_is_refused_with_a_reason(name, why, prefix):
    with pytest.raises(ValueError, match=f"given to a task: .*{why}.*it can have `kvm`") as error:
        parse_device(prefix + name)
    assert str(error.value).isprintable()


def test_refused_device_in_a_rule_file_has_its_line():
    assert policy("version: 1\nsandbox: {devices: [/dev/kvm, gpu]}").box == SandboxSettings(devices=("gpu", "kvm"))
    with pytest.raises(RuleFileError, match=r"2:21: `/dev/mem` can't be given to a task"):
        loaded("version: 1\nsandbox: {devices: [/dev/mem]}")


def test_all_gpus_cover_one_gpu_and_no_other_device():
    assert includes_device("nvidia0", ("gpu",))
    assert not includes_device("gpu", ("nvidia0",))
    assert not includes_device("kvm", ("gpu",))
