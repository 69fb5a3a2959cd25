"""What a rule file's `sandbox` shows, hides and keeps, as a task finds it: as root and as an ordinary user."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from enforcer.sandbox.mount_plan import SHARED_VAR
from tests.support import harness

EXEAT = Path(sys.executable).with_name("exeat")
PYTHON = Path(sys.base_prefix) / "bin" / "python3"
SCRIPT = Path(__file__).with_name("boxed.py")
DENIED, GONE, READ_ONLY = "Permission denied", "No such file or directory", "Read-only file system"


def rules(someone, sandbox):
    return someone.write(someone.home / "rules.yaml", f"version: 1\nname: box\nsandbox: {json.dumps(sandbox)}\n")


def plant(top, *paths):
    """Write files that hold their own names, all of whoever `top` belongs to."""
    owner = top.stat()
    for path in paths:
        place = top / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(path)
        while place != top:
            os.chown(place, owner.st_uid, owner.st_gid)
            place = place.parent


def begin(someone, *words):
    """Start `exeat` with pipes to it."""
    argv = [str(Path(sys.executable).with_name("exeat")), *map(str, words)]
    if someone.user:
        argv = harness.as_user(argv, someone.home)
    env = {**os.environ, "PYTHONPATH": str(harness.PROJECT), "HOME": str(someone.home)}
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=someone.work
    )


def inside(someone, sandbox, *asked, options=(), **more):
    """Try things in a sandbox: what came of each, in their order, and what `exeat run` said besides."""
    someone.write(someone.work / "boxed.py", SCRIPT.read_text())
    words = ["run", "--quiet", "--rules", rules(someone, sandbox), "--read", sys.base_prefix, *options]
    done = someone.exeat(*words, "--", PYTHON, "boxed.py", json.dumps(asked), **more)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout), done.stderr.decode()


def table(someone, sandbox, rows, **more):
    """Try a table of (what, argument, expected)."""
    asked = [(kind, str(argument)) for kind, argument, _ in rows]
    said, _ = inside(someone, sandbox, *asked, **more)
    both = zip(rows, said, strict=True)
    assert [(row, result) for row, result in both if row[2] != result] == []


def test_sandbox_shows_writes_and_hides_as_configured(someone):
    home, work = someone.home, someone.work
    plant(home, "data/in/deep", "data/secret/deep", "notes/.ssh/id", "elsewhere/x", "one", "other")
    plant(work, ".env", "sub/.env", "sub/secrets/a.json", "sub/secrets/a.txt", "lib/code")
    (home / "data" / "in" / "deep").chmod(0o600)
    (home / "link").symlink_to("elsewhere")
    (work / "out").symlink_to(home / "other")
    os.symlink("notes/.ssh", home / ".ssh")
    sandbox = {
        "read": ["~/data", "~/link", "~/one", str(work / "lib")],
        "write": ["~/notes", "~/data/in"],
        "hide": ["~/data/secret", "**/.env", "**/secrets/*.json"],
    }
    table(someone, sandbox, [
        ("names", home, ["data", "elsewhere", "notes", "one"]),
        ("names", home / "data", ["in", "secret"]),
        ("read", home / "elsewhere/x", "elsewhere/x"),  # where the link that was named leads
        ("write", home / "elsewhere/x", READ_ONLY),
        ("read", home / "one", "one"),
        ("append", home / "one", READ_ONLY),
        ("read", home / "other", GONE),
        ("read", work / "out", GONE),  # a link leads only to what is shown
        ("write", home / "data/new", READ_ONLY),
        ("read", home / "data/in/deep", "data/in/deep"),  # its owner's alone
        ("append", home / "data/in/deep", "written"),  # written, inside what is only read
        ("owner", home / "data/in/deep", [True, True, "0o600"]),
        ("write", home / "notes/new", "written"),
        ("names", home / "data/secret", DENIED),
        ("read", home / "data/secret/deep", DENIED),
        # credentials, also where a link in the home says that they are
        ("names", home / "notes/.ssh", DENIED),
        ("rename", home / "notes/.ssh", "Device or resource busy"),
        ("read", home / "notes/.ssh/id", DENIED),
        # wherever they lie
        ("read", work / ".env", DENIED),
        ("read", work / "sub/.env", DENIED),
        ("rename", work / "sub/.env", "Device or resource busy"),
        ("replace", work / "sub/.env", "Device or resource busy"),
        ("link", work / "sub/.env", "Invalid cross-device link"),
        ("write", work / "sub/.env", READ_ONLY),
        ("read", work / "sub/secrets/a.json", DENIED),
        ("read", work / "sub/secrets/a.txt", "sub/secrets/a.txt"),
        ("rename", work / "sub/secrets", "Device or resource busy"),  # else the next task would see it
        ("rename", work / "sub", "renamed"),
        ("read", work / "sub.moved/.env", DENIED),
        # read-only inside what is written
        ("read", work / "lib/code", "lib/code"),
        ("write", work / "lib/code", READ_ONLY),
        ("rename", work / "lib", "Device or resource busy"),
    ])  # fmt: skip
    assert (home / "data/in/deep").read_text() == "data/in/deep+"
    assert (home / "notes/new").stat().st_uid == home.stat().st_uid, "it is its owner's, whoever ran the task"


def test_socket_in_a_writable_path_is_unreachable(someone):
    shared = someone.home / "shared"
    plant(someone.home, "shared/x")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(shared / "s"))
    os.chmod(shared / "s", 0o777)
    server.listen()
    code = f"import socket\ntry: socket.socket(socket.AF_UNIX).connect({str(shared / 's')!r})\nexcept OSError as e: print(e.strerror)"  # fmt: skip
    words = ["run", "--quiet", "--rules", rules(someone, {"write": [str(shared)]}), "--read", sys.base_prefix]
    done = someone.exeat(*words, "--", PYTHON, "-c", code)
    server.close()
    assert done.stdout.decode() in {"Connection refused\n", "Permission denied\n"}, done.stderr.decode()


def test_caches_persist_and_serve_one_task_at_a_time(someone):
    sandbox = {"caches": {"pip": "~/.cache/deep/pip", "apt": "/var/cache/apt"}}
    home = "/home/task"
    pip, apt, kept = f"{home}/.cache/deep/pip", "/var/cache/apt", someone.home / ".local/state/exeat/caches"
    table(someone, sandbox, [
        ("names", pip, []),
        ("write", f"{pip}/x", "written"),
        ("owner", pip, [True, True, "0o700"]),
        ("write", f"{home}/.cache/other", "written"),  # what is above a cache is the task's too
        ("write", f"{apt}/y", "written"),
        ("rename", pip, "Device or resource busy"),
    ])  # fmt: skip
    assert (kept / "pip" / "x").read_text() == "by the task"
    assert (kept / "pip").stat().st_mode & 0o777 == 0o700
    assert (kept / "pip" / "x").stat().st_uid == kept.stat().st_uid
    words = ["run", "--quiet", "--rules", rules(someone, {}), "--cache", f"pip={pip.replace(home, '~')}"]
    first = begin(someone, *words, "--", "sh", "-c", "cat ~/.cache/deep/pip/x && echo && read line")
    assert first.stdout.readline() == b"by the task\n"
    said, told = inside(someone, sandbox, ["names", pip], ["write", f"{pip}/z"], ["read", f"{apt}/y"])
    assert said == [[], "written", "by the task"], "the one that is taken is empty, the other is not"
    assert "the cache `pip` is in use by another task" in told
    first.communicate(b"\n", timeout=60)
    assert sorted(os.listdir(kept / "pip")) == ["x"], "nothing of the empty one is kept"
    assert inside(someone, sandbox, ["read", f"{pip}/x"])[0] == ["by the task"]


@pytest.mark.first_run
def test_caches_below_a_writable_path_are_refused(someone):
    kept = someone.home / ".local/state/exeat/caches"
    plant(someone.home, "elsewhere/x")
    kept.parent.mkdir(parents=True)
    os.symlink(someone.home / "elsewhere", kept)
    for path in (kept.parent, kept.parent.parent, kept.parent.parent.parent):
        os.chown(path, someone.home.stat().st_uid, -1)
        path.chmod(0o700)
    said = someone.exeat("run", "--rules", rules(someone, {"caches": {"a": "~/a"}}), "--", "true")
    assert (said.returncode, "is not a directory" in said.stderr.decode()) == (125, True)


def test_environment_has_only_the_named_variables(someone):
    sandbox = {
        "environment": {"keep": ["KEPT_*", "HOME"], "set": {"SET": "1", "PATH": "/usr/bin"}},
        "hostname": "box-7",
    }
    env = {"KEPT_A": "a", "OTHER": "b", "LD_PRELOAD": "", "AWS_SECRET_ACCESS_KEY": "c"}
    table(someone, sandbox, [
        ("variable", "KEPT_A", "a"),
        ("variable", "OTHER", "not set"),
        ("variable", "AWS_SECRET_ACCESS_KEY", "not set"),
        ("variable", "SET", "2"),  # an option has the last word
        ("variable", "PATH", "/usr/bin"),
        ("variable", "HOME", "/home/task"),  # what the sandbox says for itself stays
        ("read", "/proc/sys/kernel/hostname", "box-7\n"),
        ("read", "/etc/hostname", "box-7\n"),
    ], env=env, options=["--env", "SET=2"])  # fmt: skip


def test_variable_with_a_secret_is_removed(someone):
    file = someone.write(
        someone.home / "rules.yaml",
        "version: 1\nsandbox: {environment: {keep: REAL_*}}\nsecrets:\n"
        "- {id: key, from: {env: REAL_KEY}, as: KEY, hosts: api.example, in: {header: authorization}}\n",
    )
    said = someone.exeat("run", "--rules", file, "--", "true", env={"REAL_KEY": "hunter2-hunter2-hunter2"})
    assert (said.returncode, b"would give the task the value of the secret" in said.stderr) == (2, True), said.stderr


@pytest.mark.parametrize("path", ["hidden/desk", "keys"])
def test_workspace_below_a_hidden_path_is_refused(someone, path):
    place = someone.home / path
    plant(someone.home, f"{path}/x")
    if path == "keys":
        os.symlink("keys", someone.home / ".aws")
    file = rules(someone, {"hide": ["~/hidden"]})
    said = someone.exeat("run", "--rules", file, "--workspace", place, "--", "true")
    assert (said.returncode, b"which stays hidden" in said.stderr) == (2, True), said.stderr


def test_standard_streams_can_be_opened_by_name(someone):
    """As scripts do; what they lead to is a pipe of the task's own, whoever made it."""
    words = ["run", "--quiet", "--rules", rules(someone, {}), "--", "sh", "-c"]
    done = someone.exeat(*words, "echo out >/dev/stdout; echo err >/dev/stderr; echo more >/proc/self/fd/1")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\nmore\n", b"err\n", 0)


def test_devices_and_kernel_files_are_few_and_read_only(someone):
    hidden = [f"/proc/{name}" for name in ("kcore", "keys", "kallsyms", "timer_list", "interrupts")]
    table(someone, {"hide": ["/proc/version", "/dev/full"]}, [
        ("read", "/proc/version", DENIED),
        ("read", "/dev/full", DENIED),
        ("names", "/dev", ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"]),
        ("write", "/dev/new", READ_ONLY),
        ("names", "/sys", ["devices"]),
        ("names", "/sys/devices/system", ["cpu"]),
        ("write", "/sys/new", READ_ONLY),
        ("names", "/run", ["user"]),
        *(("read", path, DENIED) for path in hidden if os.path.exists(path)),
        *(("append", f"/proc/sys/{name}", DENIED) for name in ("kernel/core_pattern", "kernel/hostname", "vm/drop_caches")),
        ("append", "/proc/self/uid_map", "Invalid argument"),
        ("append", "/proc/1/oom_score_adj", DENIED),
        ("names", "/proc/1/fd", DENIED),
        ("names", "/proc/1/root", DENIED),
        ("names", "/proc/1/cwd", DENIED),
    ])  # fmt: skip


def test_rule_files_in_writable_paths_are_covered_or_refused(someone):
    """As in a workspace: what a task may write besides is no place to choose its own rules from."""
    plant(someone.home, "shared/conf/x", "apart/rules.yaml")
    shared = someone.home / "shared"
    text = f"version: 1\nname: box\nsandbox: {{write: {json.dumps(str(shared))}}}\n"
    inner = someone.write(shared / "conf" / "rules.yaml", text)
    someone.write(someone.work / "boxed.py", SCRIPT.read_text())
    asked = [(what, str(path)) for path in (inner, inner.parent) for what in ("rename", "append", "replace")]
    words = ["run", "--quiet", "--read", sys.base_prefix, "--", PYTHON, "boxed.py", json.dumps(asked)]
    done = someone.exeat(*words[:2], "--rules", inner, *words[2:])
    assert done.returncode == 0, done.stderr
    busy = "Device or resource busy"
    assert json.loads(done.stdout) == [busy, READ_ONLY, busy, busy, "Is a directory", "Is a directory"]
    os.symlink(someone.write(someone.home / "apart" / "rules.yaml", text), shared / "link.yaml")
    refused = someone.exeat(*words[:2], "--rules", shared / "link.yaml", *words[2:])
    assert (refused.returncode, b"symbolic link" in refused.stderr) == (2, True), refused.stderr


def test_mounts_in_a_workspace_are_hidden_unless_on_disk(someone):
    """Network, FUSE and the kernel's own file systems reach other processes, and some run programs of the host."""
    for name in ("foreign", "disk"):
        plant(someone.work, f"{name}/underneath")
    foreign, disk = someone.work / "foreign", someone.work / "disk"
    someone.write(someone.work / "boxed.py", SCRIPT.read_text())
    asked = [("names", str(foreign)), ("rename", str(foreign)), ("names", str(disk))]
    argv = [Path(sys.executable).with_name("exeat"), "run", "--quiet", "--rules", rules(someone, {})]
    argv += ["--read", sys.base_prefix, "--", PYTHON, "boxed.py", json.dumps(asked)]
    argv = harness.as_user(argv, someone.home) if someone.user else argv
    script = (
        'mount -t ramfs none "$1" && touch "$1/x" && mount -t tmpfs none "$2" && touch "$2/y" && shift 2 && exec "$@"'
    )
    done = harness.run(["unshare", "--mount", "sh", "-c", script, "sh", foreign, disk, *argv], home=someone.home, cwd=someone.work)  # fmt: skip
    if not someone.user:  # run by root, a mount inside is not entered at all: the task would write below it
        assert (done.returncode, b"is another file system (ramfs), mounted inside" in done.stderr) == (2, True)
        return
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == [DENIED, "Device or resource busy", ["y"]]


AROUND = """
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" && cd "$1" &&
mount -t overlay -o "lowerdir=/usr,upperdir=$1/upper,workdir=$1/work" none /usr &&
mkdir -p /usr/share/exeat-test/mounted && cd /usr/share/exeat-test &&
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do head -c $((5000 + i)) /dev/zero | tr '\\0' "$(printf "%x" $i)" > $i; done &&
echo private > private && chmod 640 private && : > empty && mount -t tmpfs none mounted && touch mounted/in &&
cd "$2" && shift 2 && exec "$@"
"""


def test_siblings_of_a_mount_keep_the_sandboxs_permissions(someone):
    """Who makes it may be root: what only root may read is not brought in, whatever keeps the task from it there."""
    aside = someone.home / "aside"
    aside.mkdir()
    look = "cd /usr/share/exeat-test; cksum 1 2 3 4 5 6 7 8 9 10 11 12 empty; stat -c '%s %a' private; cat mounted/in"
    argv = [Path(sys.executable).with_name("exeat"), "run", "--quiet", "--rules", rules(someone, {}), "--", "sh", "-c", look]  # fmt: skip
    argv = harness.as_user(argv, someone.home) if someone.user else argv
    done = harness.run(["unshare", "--mount", "sh", "-c", AROUND, "sh", aside, someone.work, *argv], home=someone.home)
    assert b"mounted/in: No such file" in done.stderr, done.stderr.decode()
    *sums, private = done.stdout.decode().splitlines()
    content = {str(number): f"{number:x}"[0].encode() * (5000 + number) for number in range(1, 13)} | {"empty": b""}
    for line, (name, held) in zip(sums, content.items(), strict=True):
        found = subprocess.run(["cksum"], input=held, capture_output=True, check=True).stdout.decode().split()
        assert line == f"{' '.join(found)} {name}"
    assert private == "0 0"


def test_programs_of_package_managers_find_their_files(someone):
    """lscpu(1) ended, and dpkg(1), aspell(1) and TeX found none of what was installed."""
    for tool in ("lscpu", "dpkg"):
        if shutil.which(tool) is None:
            harness.missing(tool)
    script = (
        "lscpu | grep -E '^(CPU.s.|Thread)'; dpkg -S /bin/ls | head -1; ls -d /var/lib/*; touch /var/lib/dpkg/status"
    )
    host = subprocess.run(["sh", "-c", script.partition("; ls -d")[0]], capture_output=True, check=True).stdout
    done = someone.exeat("run", "--quiet", "--rules", rules(someone, {}), "--", "sh", "-c", script)
    said, _, below = done.stdout.partition(b"/var/lib")
    assert said.split() == host.split()
    assert b"/var/lib/" + below.split()[0].rpartition(b"/")[2] in {f"{path}".encode() for path in SHARED_VAR}
    assert set(done.stdout[len(said) :].decode().split()) == {
        path for path in SHARED_VAR if path.startswith("/var/lib") and os.path.isdir(path)
    }
    assert b"Read-only file system" in done.stderr


@pytest.fixture
def mounted(someone):
    """Run with a file system mounted inside the workspace; what was said, and what came to lie below the mount."""

    def run(*options, script="true", after="true"):
        words = [str(EXEAT), "run", "--quiet", "--rules", rules(someone, {}), *options, "--", "sh", "-c", script]
        words = harness.as_user(words, someone.home) if someone.user else words
        mount = f"set -e; mkdir -m 777 data; mount -t tmpfs -o mode=777 x data; echo host > data/host; ({shlex.join(map(str, words))}) || echo ended $?; {after}; umount data; ls data; rm -r data"
        env = {**os.environ, "HOME": str(someone.home), "EXEAT_CONTROL": "/dev/null/none"}
        argv = ["unshare", "--mount", "sh", "-c", mount]
        done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=someone.work, timeout=60, check=False)
        return done.stdout.split("\n"), done.stderr

    return run


WRITES = "ls data; echo new > data/new && echo wrote"


@pytest.mark.parametrize("options", [(), ("--review",)], ids=["direct", "reviewed"])
def test_mount_in_the_workspace_is_shown_or_refused(mounted, someone, options):
    """The task wrote below it, where the host sees nothing until it is unmounted."""
    said, errors = mounted(*options, script=WRITES, after="cat data/new || true")
    if someone.user and not options:
        assert said == ["host", "wrote", "new", ""], "nothing lies below"
        return
    assert said[:1] == ["ended 2"]
    place = f"{someone.work}/data"
    assert f"`{place}` is another file system (tmpfs), mounted inside `{someone.work}`" in errors
    assert f"`--write {place}`, `--read {place}` or `--hide {place}`, or unmount it" in errors


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--write", ["host", "wrote", "new"]),
        ("--read", ["host", "ended 2"]),
        ("--hide", ["ended 2"]),
    ],
)
def test_mount_in_the_workspace_is_described_truthfully(mounted, someone, option, said):
    """Each remedy that the refusal names works, and nothing comes to lie below the mount."""
    found, errors = mounted(option, f"{someone.work}/data", script=WRITES, after="test ! -e data/new || cat data/new")
    assert found == [*said, "", ""][: len(found)], errors
    assert "another file system" not in errors
