"""What people run works under the filter: each does what makes it use system calls of its own, offline."""

import os
import pwd
import shutil
from pathlib import Path

from tests.support import harness

TOOLCHAINS = Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".rustup" / "toolchains"
RULES = "version: 1\nname: nothing\nrules: []\n"

# Each prints nothing but `ok` and its name; what fails says why.
PROGRAMS = {
    "python3": """python3 - <<'E'
import asyncio, concurrent.futures, multiprocessing, os, socket, sqlite3, subprocess, tempfile, threading, shutil
assert subprocess.check_output(["echo", "x"]) == b"x\\n"
with concurrent.futures.ProcessPoolExecutor(2) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    server.close()
asyncio.run(main())
with tempfile.TemporaryDirectory() as place:
    sqlite3.connect(place + "/db").execute("create table t (x)").connection.commit()
    shutil.copytree("/usr/share/zoneinfo/Europe", place + "/copy", symlinks=True)
    os.mkfifo(place + "/fifo")
    os.memfd_create("x")
assert socket.getaddrinfo("localhost", 80) and socket.if_nameindex()
E""",
    "node": """node -e '
const {execSync, fork} = require("child_process"), {Worker} = require("worker_threads"), fs = require("fs")
if (execSync("echo x").toString() != "x\\n") throw "exec"
fs.watch(".").close(); fs.copyFileSync("/etc/passwd", "copied"); fs.promises.readFile("copied")
new Worker("require(\\"os\\").networkInterfaces()", {eval: true}).on("exit", code => { if (code) throw code })
require("net").createServer().listen(0, function () { this.close() })'""",
    "git": """git init -q r && cd r && git config user.email a@example.com && git config user.name a &&
echo x > f && git add f && git commit -qm m && git clone -q . ../c && git gc -q && git fsck --no-progress""",
    "gcc": """printf 'int main(void){return 0;}' > a.c && gcc -O2 -pthread -o a a.c && ./a""",
    "make": """printf 'all:\\n\\t@true\\n' > Makefile && make -s -j2""",
    "java": """mkdir j && cd j && printf 'public class A { public static void main(String[] a) throws Exception {
new ProcessBuilder("true").start().waitFor(); Thread t = new Thread(System::gc); t.start(); t.join();
java.nio.file.FileSystems.getDefault().newWatchService().close(); } }' > A.java && java -Xmx128m A.java""",
    "apt-get": "apt-get --version > /dev/null && apt-cache policy > /dev/null",
    "dpkg-deb": """mkdir -p d/DEBIAN && printf 'Package: a\\nVersion: 1\\nArchitecture: all\\nMaintainer: a\\nDescription: a\\n' \
> d/DEBIAN/control && dpkg-deb --root-owner-group -b d a.deb > /dev/null && dpkg-deb -x a.deb out""",
    "bash": """set -m; sleep 0.01 & wait; (ulimit -c 0); exec 3< <(echo x); read -r line <&3; test "$line" = x""",
    "tar": "tar cJf t.tar.xz /usr/share/zoneinfo/Europe 2> /dev/null && mkdir t && tar xJf t.tar.xz -C t",
    "perl": """perl -MPOSIX -e 'my $p = fork // die; POSIX::_exit(0) unless $p; waitpid $p, 0; die if $?; alarm 0'""",
    "gdb": "gdb -q -batch -ex run -ex quit /bin/true 2> /dev/null | grep -q 'exited normally'",
    "strace": "strace -f -o trace true && grep -q exit_group trace",
    "sqlite3": "sqlite3 b.db 'pragma journal_mode=wal; create table t(x); insert into t values(1);' > /dev/null",
    "rsync": "rsync -a /usr/share/zoneinfo/Europe/ synced/",
    "chromium": """chromium --headless --no-sandbox --disable-gpu --user-data-dir=/tmp/chromium \
--dump-dom 'data:text/html,<p>hi' 2> /dev/null | grep -q '<p>hi</p>'""",
    "cargo": """mkdir src && echo 'fn main() { std::thread::spawn(|| ()).join().unwrap() }' > src/main.rs &&
printf '[package]\nname = "a"\nversion = "0.1.0"\nedition = "2021"\n' > Cargo.toml && cargo run --offline -q""",
    "curl": "curl -s -m 5 file:///etc/passwd > /dev/null",
}
ONLY_SOMEWHERE = {"node", "chromium", "cargo"}  # `make clients` installs these; `make test` all others


def test_common_programs_work(someone):
    # A toolchain that lies where only root reads is shown to root's task.
    rust = next(TOOLCHAINS.glob("stable-*/bin"), None) if not someone.user else None
    path = f"/usr/bin:/bin:{rust or ''}".rstrip(":")
    names = [name for name in PROGRAMS if shutil.which(name, path=path)]
    lines = [f"mkdir -p {name}; (cd {name} && {{ {PROGRAMS[name]}\n}}) && echo ok {name}" for name in names]
    someone.write(someone.work / "all.sh", "\n".join((f"PATH={path}", *lines, "")))
    rules = someone.write(someone.home / "rules.yaml", RULES)
    shown = ["--read", rust.parent] if rust else []
    done = someone.exeat("run", "--quiet", "--rules", rules, *shown, "--", "bash", "all.sh", timeout=180)
    assert done.stdout.decode().splitlines() == [f"ok {name}" for name in names], done.stderr.decode()
    if absent := PROGRAMS.keys() - ONLY_SOMEWHERE - set(names):
        harness.missing(", ".join(sorted(absent)))
