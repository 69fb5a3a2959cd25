"""A task that makes names without number: what looks at them at its end has only so many in memory."""

import tracemalloc

import pytest

from enforcer.limits import disk_quota
from enforcer.limits.resource_limits import Limits
from enforcer.system.errors import UsageError
from enforcer.workspace import protected_files
from enforcer.workspace.overlay_changes import gather
from enforcer.workspace.protected_files import Guard
from enforcer.workspace.safe_path import Tree

MANY = 4000
# Of a look at all of them. One name that was kept had some 700 bytes.
MOST = 1_500_000


@pytest.fixture
def few(monkeypatch):
    """Bounds that a test reaches quickly."""
    monkeypatch.setattr(protected_files, "_MOST_BELOW", 50)
    monkeypatch.setattr(protected_files, "_MOST_MATCHED", 100)
    monkeypatch.setattr(protected_files, "_MOST", 60)


def _fill(directory, names=MANY):
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(names):
        (directory / f"l{number}").symlink_to("nowhere")


def _peak(act):
    tracemalloc.start()
    try:
        found = act()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("globs", "where"),
    [
        ([".vscode"], ".vscode"),  # a directory of protected ones
        (["**/.envrc"], "deep"),  # one that a glob has to be looked for in
        ([".git/modules/**/hooks"], ".git/modules/x/hooks"),
    ],
)
def test_many_names_are_processed_in_bounded_memory(tmp_path, few, globs, where):
    guard = Guard(str(tmp_path), globs)
    _fill(tmp_path / where)
    changed, peak = _peak(guard.find_changed)
    guard.close()
    assert peak < MOST
    assert len(changed) < 100


def test_large_covered_directory_is_unchanged(tmp_path, few):
    _fill(tmp_path / ".vscode")
    guard, peak = _peak(lambda: Guard(str(tmp_path), [".vscode"]))
    assert guard.find_changed() == []
    guard.close()
    assert peak < MOST


def test_directory_that_grew_is_changed(tmp_path, few):
    _fill(tmp_path / ".vscode", 10)
    guard = Guard(str(tmp_path), [".vscode"])
    _fill(tmp_path / ".vscode" / "more")
    assert ".vscode" in guard.find_changed()
    guard.close()


def test_many_protected_files_are_quarantined_in_batches(tmp_path, few):
    """None of them stays where the host would obey it, though no more than some are in memory at a time."""
    guard = Guard(str(tmp_path), ["**/.envrc"])
    for number in range(350):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / ".envrc").write_text("evil")
    for _ in range(4):
        made = guard.find_new(guard.find_changed())
        assert len(made) <= 101
        for path in made:
            (tmp_path / path).rename(f"{tmp_path / path}.aside")
        if not guard.is_cut:
            break
    guard.close()
    assert not guard.is_cut
    assert list(tmp_path.rglob(".envrc")) == []


def test_new_repository_hides_no_file_beside_it(tmp_path, few):
    guard = Guard(str(tmp_path), [".git/modules/*/config", "**/.envrc"])
    for number in range(300):
        (tmp_path / ".git" / "modules" / str(number)).mkdir(parents=True)
        (tmp_path / ".git" / "modules" / str(number) / "config").write_text("")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / ".envrc").write_text("evil")
    changed = guard.find_changed()
    assert guard.find_new(changed) == ["z/.envrc"]
    assert len(changed) < 100
    guard.close()


def test_too_many_protected_files_refuse_the_start(tmp_path, few):
    for number in range(150):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / ".envrc").write_text("")
    with pytest.raises(UsageError, match="more than 60 files"):
        Guard(str(tmp_path), ["**/.envrc"]).paths()


def test_many_changes_are_collected_in_pieces(lab):
    lab.begin()
    for number in range(5):
        lab.task_writes(f"made/{number}")
    workspace = Tree.open(str(lab.work))
    with pytest.raises(OSError, match="more than 3"):
        gather(lab.kept, workspace, max_changes=3)
    assert not lab.kept.is_gathered
    assert len(gather(lab.kept, workspace, max_changes=6)) == 6
    workspace.close()
    assert len(lab.changes()) == 6


def test_reviewed_task_has_a_limit_of_changed_files(tmp_path, monkeypatch):
    """However much disk it may have."""
    monkeypatch.setattr(disk_quota, "_MAX_NAMES", 10)
    one = disk_quota.DiskQuota(str(tmp_path), Limits(disk=1 << 40, said=frozenset({"disk"})))
    for number in range(12):
        (tmp_path / str(number)).touch()
    over = one.final_scan()
    one.close()
    assert over is not None
    assert "they may be 10" in over.detail
