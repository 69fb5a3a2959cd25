"""Steps at the edges: paths that a task could have prepared for the next start."""

import errno
import os
import socket
from pathlib import Path

import pytest

from enforcer.sandbox import identity, path_scan
from enforcer.system import linux
from enforcer.system.errors import HostError
from rules.values.patterns import Pattern
from tests.support import harness


def _doors(directory):
    descriptor = os.open(directory, os.O_RDONLY)
    found = []
    try:
        for place in path_scan.find_sockets(descriptor):
            found.append(os.readlink(f"/proc/self/fd/{place}"))
            os.close(place)
    finally:
        os.close(descriptor)
    return sorted(found)


def test_sockets_and_fifos_are_found_without_following_links(tmp_path):
    outside, work = tmp_path / "outside", tmp_path / "work"
    for path in (outside, work / "a" / "b"):
        path.mkdir(parents=True)
    os.mkfifo(outside / "fifo")
    os.mkfifo(work / "a" / "fifo")
    (work / "link").symlink_to(outside)
    (work / "a" / "to-fifo").symlink_to(outside / "fifo")
    (work / "a" / "file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(work / "a" / "b" / "socket\n"))
        assert _doors(work) == [f"{work}/a/b/socket\n", f"{work}/a/fifo"]


def test_too_deep_nesting_is_an_error(tmp_path):
    place = tmp_path
    for _ in range(path_scan.MAX_DEPTH + 1):
        place = place / "d"
        place.mkdir()
    with pytest.raises(OSError, match="nested more than 200 deep"):
        _doors(tmp_path)


def _unknown(*_):
    raise OSError(errno.ENOSYS, "no such call here")


@pytest.mark.parametrize("openat2", [linux.openat2, _unknown], ids=["one call", "step by step"])
def test_links_on_the_path_are_never_followed(tmp_path, monkeypatch, openat2):
    monkeypatch.setattr(linux, "openat2", openat2)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    os.close(path_scan.open_without_links(str(tmp_path / "real" / "file")))
    with pytest.raises(OSError, match=r"symbolic link .`link`."):
        path_scan.open_without_links(str(tmp_path / "link" / "file"))
    for link in (str(tmp_path / "link"), "/proc/self/cwd", f"/proc/{os.getpid()}/root/etc"):
        with pytest.raises(OSError, match="symbolic link"):
            path_scan.open_without_links(link)
    with pytest.raises(FileNotFoundError):
        path_scan.open_without_links(str(tmp_path / "missing" / "file"))


def test_unlistable_directory_is_masked(tmp_path):
    """A task that knows a name in it could get through: 0711, somebody else's, with a socket inside."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o711)
    os.chown(tmp_path, 54321, 54321)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.setresuid(54321, 54321, 54321)
        try:
            found = _doors(".")
        except OSError as error:
            found = [str(error)]
        os.write(writer, "\n".join(found).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.read() == f"{tmp_path}/closed"


def test_links_to_shown_paths_are_not_followed(tmp_path):
    """Another task, whose workspace it lies in, could have put it there since the path was looked at."""
    (tmp_path / "real" / "in").mkdir(parents=True)
    (tmp_path / "real" / "in" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    for path in ("link", "link/in", "link/in/file"):
        with pytest.raises(HostError, match="symbolic link"):
            identity.idmapped_tree(str(tmp_path / path), 4242, 4242)


def test_names_are_found_at_any_depth_without_links(tmp_path):
    for path in (".env", "a/.env", "a/b/secrets/x.json", "a/b/secrets/x.txt", "secrets/c/x.json", "c/.env/.env"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "link.env").symlink_to(".env")
    patterns = [[Pattern.parse(glob) for glob in globs] for globs in ([".env"], ["secrets", "*.json"], ["*.env"])]
    root = os.open(tmp_path, os.O_RDONLY)
    found = []
    for place, last in path_scan.find_names(root, patterns):
        found.append((os.path.relpath(os.readlink(f"/proc/self/fd/{place}"), tmp_path.resolve()), last))
        os.close(place)
    os.close(root)
    ends = [path for path, last in found if last]
    assert sorted(ends) == [".env", "a/.env", "a/b/secrets/x.json", "c/.env"]
    assert sorted(path for path, last in found if not last) == ["a/b/secrets", "secrets"]


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_ids_are_mapped_without_a_remaining_process(tmp_path):
    harness.needs_root()
    os.chown(tmp_path, 12, 34)
    before = children()
    mount = identity.idmapped_tree(str(tmp_path), 4242, 4343)
    status = os.fstat(mount)
    os.close(mount)
    assert (status.st_uid, status.st_gid) == (4242, 4343)
    assert children() == before


def test_prepared_id_map_serves_one_mount_of_its_owner(tmp_path):
    harness.needs_root()
    os.chown(tmp_path, 12, 34)
    before = os.listdir("/proc/self/fd")
    identity.make_idmap_ahead((12, 34), (4242, 4343))
    (ahead,) = identity.idmap_descriptors()
    os.close(identity.idmapped_tree(str(tmp_path), 4242, 5656))  # for somebody else
    assert identity.idmap_descriptors() == {ahead}
    for _ in range(2):
        mount = identity.idmapped_tree(str(tmp_path), 4242, 4343)
        status = os.fstat(mount)
        os.close(mount)
        assert (status.st_uid, status.st_gid) == (4242, 4343)
        assert not identity.idmap_descriptors()
    assert os.listdir("/proc/self/fd") == before
