"""Where paths lead, looked up together, is where each of them leads."""

import os

import pytest

from enforcer.sandbox.system_paths import real_paths

PATHS = (
    "plain", "plain/below", "plain/below/missing/further", "missing", "file/below",
    "link", "link/below", "absolute/below", "out/plain/below", "root", "root/etc", "dangling", "dangling/below",
    "loop", "loop/below", "chain", "chain/below", "up/plain", "plain/../link", "plain/./below", "plain//below",
    "link/..", "link/../plain", "plain/", ".hidden/below", "..dots",
)  # fmt: skip


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "plain/below").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, to in (
        ("link", "plain"),
        ("absolute", tmp_path / "plain"),
        ("out", f"../{tmp_path.name}"),
        ("root", "/"),
        ("dangling", "nowhere/at/all"),
        ("loop", "loop"),
        ("chain", "link"),
        ("up", ".."),
        (".hidden", "plain"),
        ("..dots", "chain"),
    ):
        (tmp_path / name).symlink_to(to)
    (tmp_path / "up").unlink()
    (tmp_path / "up").symlink_to("plain/..")
    return tmp_path


@pytest.mark.parametrize("turned", [False, True])
def test_joint_lookup_equals_single_lookups(tree, turned):
    paths = [f"{tree}/{path}" for path in PATHS] + ["/", "/proc/self/cwd", "relative/path", ""]
    paths = paths[::-1] if turned else paths
    assert real_paths(paths) == [os.path.realpath(path) for path in paths]


def test_shared_parent_is_read_once(tree, monkeypatch):
    looked = []
    islink = os.path.islink
    monkeypatch.setattr(os.path, "islink", lambda path: looked.append(path) or islink(path))
    real_paths(f"{tree}/plain/{number}" for number in range(9))
    assert len(looked) == len(set(looked)) == len(tree.parts) + 9
