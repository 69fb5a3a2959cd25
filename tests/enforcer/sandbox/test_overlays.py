"""What is shown of a directory around a file system that is mounted inside it and can't be taken away (`layers`)."""

import os
import stat

import pytest

from enforcer.sandbox import init, namespaces, overlays
from enforcer.sandbox.identity import IdMap, write_map
from enforcer.sandbox.path_scan import NEW, OLD
from enforcer.sandbox.step_lists import CallFailedError
from enforcer.system.errors import HostError
from tests.support import harness

FILES = {f"file{number}": bytes([65 + number]) * (overlays._INLINE_BYTES + number) for number in range(40)}
ROOT = IdMap(((0, 0, 1),))


@pytest.fixture(params=["compiled", "interpreted"])
def process(request, monkeypatch, tmp_path):
    """One whose mounts are another's, who has something mounted in the directory that is shown."""
    if os.geteuid():
        harness.missing("root: somebody who may mount")
    if request.param == "interpreted":
        monkeypatch.setattr(init, "COMPILED", "")
    (tmp_path / "shown" / "mounted").mkdir(parents=True)
    pid, remote = init.start()
    calls = remote.calls
    calls.call("unshare", os.CLONE_NEWNS)
    calls.call("mount", "none", "/", 0, 0x44000)  # MS_REC, MS_PRIVATE
    calls.call("mount", "tmpfs", f"{tmp_path}/shown/mounted", "tmpfs", 0, 0)
    calls.call("unshare", os.CLONE_NEWUSER | os.CLONE_NEWNS)
    remote.run()
    write_map(pid, ROOT, ROOT, deny_setgroups=True)
    try:
        namespaces.begin_view(remote)
        remote.run()
    except (CallFailedError, HostError) as error:
        harness.missing(f"user namespaces in which something can be mounted ({error})")
    yield remote
    remote.close()
    os.waitpid(pid, 0)


def _shown(process, source, top):
    calls = process.calls
    calls.call("mkdirat", -100, f"{NEW}/shown", 0o755)
    calls.step("show it")
    overlays.mount_overlay(process, OLD + str(source), f"{NEW}/shown", top, 0o755, has_inner_mounts=True)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    [directory] = process.run(calls.get("openat", -100, f"{NEW}/shown", flags))
    return directory


def _read(name, directory):
    with open(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
        return file.read()


TOP = {"file1": b"own"}, {"below/own": b"own, too"}
ONE, TWO = {**TOP[0], **TOP[1]}, overlays.OwnFiles(*TOP)


@pytest.mark.parametrize("top", [ONE, TWO, overlays.OwnFiles({}, ONE)], ids=["one", "of all and of one", "of one"])
def test_directory_is_composed_around_its_mounts(process, tmp_path, top):
    source = tmp_path / "shown"
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    (source / "file0").chmod(0o751)
    (source / "below" / "deeper").mkdir(parents=True)
    (source / "below" / "deeper" / "file").write_text("below")
    (source / "link").symlink_to("below")
    os.mkfifo(source / "door")
    with (source / "large").open("wb") as large:
        large.truncate(overlays._MAX_COPIED + 1)
    directory = _shown(process, source, top)
    assert sorted(os.listdir(directory)) == sorted(("below", "link", *FILES))
    assert {name: _read(name, directory) for name in FILES} == FILES | {"file1": b"own"}
    assert stat.S_IMODE(os.stat("file0", dir_fd=directory).st_mode) == 0o751
    assert _read("below/deeper/file", directory) == b"below"
    assert _read("link/own", directory) == b"own, too"
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir("more", dir_fd=directory)
    os.close(directory)


def test_shared_steps_are_written_once():
    large = b"x" * 5000
    given = []
    for number in range(2):
        recorder = init.StepRecorder()
        top = overlays.OwnFiles({"all": b"small", "all/large": large}, {"own": b"%d" % number})
        overlays.mount_overlay(recorder, "/old/shown", "/new/shown", top, 0o755, has_inner_mounts=False)
        recorder.submit()
        given.append(recorder.packets)
    (first, *rest), (second, *others) = given
    assert first is second
    assert [packet.data for packet in rest] != [packet.data for packet in others]
    for number in range(2 * init._MAX_FILES):  # and what it is written from stays open
        init.shared_file(b"%5000d" % number)
    (file,) = first.descriptors
    assert os.pread(file, len(large) + 1, 0) == large
    assert file in init.shared_descriptors()
    assert len(init.shared_descriptors()) <= init._MAX_FILES + len(init._permanent_files)


def test_cached_step_list_has_no_foreign_descriptor():
    with pytest.raises(ValueError, match="of no shared file"):
        init.execute_shared(init.StepRecorder(), "with one", lambda executor: executor.calls.take(0))


def test_failed_composition_names_its_step(process, tmp_path):
    (tmp_path / "shown" / "below").mkdir()
    with pytest.raises(CallFailedError, match="Not a directory") as raised:
        _shown(process, tmp_path / "shown", {"below": b"a file of ours in its place"})
    assert raised.value.step == "show it"
