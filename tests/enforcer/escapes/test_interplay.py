"""What a task could leave behind so that the next start, with other settings, opens something for it."""

import json
import os
import stat

import pytest

from enforcer.sandbox.walking import made, made_file
from tests import harness

RULES = "version: 1\nname: nothing\nsandbox: {sandbox}\nrules: []\n"


def rules(someone, **sandbox):
    return someone.write(someone.home / "rules.yaml", RULES.format(sandbox=json.dumps(sandbox or {"user": "task"})))


def run(someone, file, *words, options=()):
    return someone.exeat("run", "--no-service", "--quiet", "--rules", file, *options, "--", *words)


def own(someone, path):
    if someone.user:
        os.chown(path, harness.UID, harness.UID)
    return path


def test_a_link_in_one_cache_is_no_way_for_another_to_the_host(someone):
    """Files can't say caches that lie in each other; options and files together must not either."""
    victim = someone.home / "victim"
    victim.mkdir(mode=0o700)
    own(someone, victim)
    left = f"ln -s /old{victim} ~/.cache/pip; echo left"
    first = run(someone, rules(someone), "sh", "-c", left, options=["--cache", "all=~/.cache"])
    assert first.stdout == b"left\n", first.stderr
    file = rules(someone, caches={"pip": "~/.cache/pip/http"})
    second = run(someone, file, "true", options=["--cache", "all=~/.cache"])
    assert (second.returncode, b"would stand in the way" in second.stderr) == (2, True), second.stderr
    assert list(victim.iterdir()) == []
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700


def test_no_mode_that_a_task_gives_its_cache_or_its_review_keeps_others_out(someone):
    file = rules(someone, caches={"one": "~/one", "two": "~/two"}, workspace="review", user="root")
    script = "echo kept > ~/one/x; chmod 777 ~/one; chmod 0 ~/two; mkdir d; echo x > d/new; chmod 0 d .; echo did"
    first = run(someone, file, "sh", "-c", script)
    assert first.stdout == b"did\n", first.stderr
    second = run(someone, file, "sh", "-c", "cat ~/one/x; ls ~/two; stat -c %a ~/one ~/two")
    assert second.stdout == b"kept\n700\n700\n", second.stderr
    changes = json.loads(someone.exeat("changes", "sh", "--format", "json").stdout)["changes"]
    assert [change["path"] for change in changes] == ["d", "d/new"]


def test_a_hidden_name_behind_a_directory_that_nobody_can_list(someone):
    shown = someone.home / "shown"
    for top in (shown, someone.work):
        someone.write(top / "closed" / ".env", "secret")
        os.chown(top / "closed", 4242, 4242)
        (top / "closed").chmod(0o711)
    own(someone, shown)
    words = ["sh", "-c", f"cat {shown}/closed/.env closed/.env"]
    for mode in ("direct", "review"):
        file = rules(someone, hide=["**/.env"], read=[str(shown)], workspace=mode)
        done = run(someone, file, *words)
        assert (done.stdout, done.stderr.count(b"Permission denied")) == (b"", 2), done.stderr


def test_nothing_is_mounted_through_a_link_that_another_task_put_there(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "link").symlink_to(outside)
    for attempt, path in ((made, "link/new"), (made, "link"), (made_file, "link/new"), (made_file, "link")):
        with pytest.raises(OSError, match="is reached through"):
            attempt(str(tmp_path / path))
    assert list(outside.iterdir()) == []
    os.close(made(str(tmp_path / "a" / "b")))
    os.close(made_file(str(tmp_path / "a" / "c")))
    assert ((tmp_path / "a/b").is_dir(), (tmp_path / "a/c").is_file()) == (True, True)
