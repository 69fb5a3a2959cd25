"""What people wait for: `npm install`, `pip download` and a shallow `git clone`, in a sandbox and without one.

The packages are real. They are fetched once, by npm and pip themselves from the registries that those are configured
for, and kept below build/; what is measured asks registries made of them, in the bench's own network.
"""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from http import HTTPStatus
from pathlib import Path

from tests.bench import cost, figures, servers, world
from tests.bench.ask import Asked
from tests.bench.figures import Figure
from tests.bench.gate import exeat

KEPT = Path(__file__).resolve().parents[2] / "build" / "bench-packages"
NODE = ("eslint@9", "express@5")  # with what they need, some 130
WHEELS = (
    "attrs", "blinker", "certifi", "charset-normalizer", "click", "flask", "idna", "itsdangerous", "jinja2",
    "markdown-it-py", "markupsafe", "mdurl", "numpy", "packaging", "pygments", "pyyaml", "requests", "rich", "urllib3",
    "werkzeug",
)  # fmt: skip
_REPOSITORY, _FILES, _SIZE = "bench/big.git", 400, 50 << 20  # bytes, which don't compress
_LONGEST = 180  # seconds for what is fetched
_AT = f"https://{world.INSPECTED}"
_RULES = """
version: 1
name: packages
rules:
  - id: registry
    to: {host}
    resolves_to: [{origin}/32]
    ports: [443/tls]
    http: {{methods: [GET, HEAD], paths: ["/packages/**"]}}
    action: allow
    why: what npm and pip fetch
  - id: clone
    to: {host}
    resolves_to: [{origin}/32]
    ports: [443/tls]
    git: {{repos: ["bench/*"], fetch: true}}
    action: allow
    why: what git clones
"""


class UnreachableError(Exception):
    """What a measurement needs isn't kept, and can't be fetched."""


# --- before the bench is in a network of its own ---


def npm() -> None:
    """Keep real packages as a registry's files. Raises UnreachableError."""
    root = KEPT / "npm"
    if root.exists():
        return
    work = _fresh("npm.part")
    install = ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", str(work / "cache")]
    _fetch([servers.find("npm"), *install, *NODE], work)
    locked = json.loads((work / "package-lock.json").read_text())["packages"]
    named = {path.rpartition("node_modules/")[2]: [] for path in locked if path}
    for path, package in locked.items():
        if path:
            named[path.rpartition("node_modules/")[2]].append((package["version"], package["integrity"]))
    files = work / "files"
    files.mkdir()
    wanted = sorted({f"{name}@{version}" for name, each in named.items() for version, _ in each})
    pack = ["pack", "--ignore-scripts", "--prefer-offline", "--cache", str(work / "cache")]
    _fetch([servers.find("npm"), *pack, "--pack-destination", str(files), *wanted], work)
    for name, each in named.items():
        _describe(work, name, dict(each))
    for unneeded in ("cache", "node_modules"):
        shutil.rmtree(work / unneeded)
    work.rename(root)


def _describe(work: Path, name: str, integrity: dict[str, str]) -> None:
    """Write what a registry says of a package: each version's own manifest, and where its archive is."""
    versions = {}
    for version, checked in integrity.items():
        archive = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
        with tarfile.open(work / "files" / archive) as packed:
            member = min((each for each in packed.getnames() if each.endswith("/package.json")), key=len)
            manifest = json.load(packed.extractfile(member))
        tarball = f"{_AT}/packages/npm/files/{archive}"
        versions[version] = {**manifest, "dist": {"tarball": tarball, "integrity": checked}}
    latest = max(versions, key=lambda version: [int(part) for part in re.findall(r"[0-9]+", version)[:3]])
    described = work / "registry" / name
    described.parent.mkdir(parents=True, exist_ok=True)
    described.write_text(json.dumps({"name": name, "dist-tags": {"latest": latest}, "versions": versions}))


def pip() -> None:
    """Keep real wheels with an index of them (PEP 503). Raises UnreachableError."""
    root = KEPT / "pip"
    if root.exists():
        return
    work = _fresh("pip.part")
    download = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(work / "files")]
    _fetch([sys.executable, *download, *WHEELS], work)
    for wheel in (work / "files").iterdir():
        index = work / "simple" / re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower() / "index.html"
        index.parent.mkdir(parents=True)
        index.write_text(f'<!DOCTYPE html><a href="../../files/{wheel.name}">{wheel.name}</a>\n')
    work.rename(root)


def git() -> None:
    """Make a repository of 50 MB with two commits: what a shallow clone leaves out is there."""
    root = KEPT / "git"
    if root.exists():
        return
    work, bare = _fresh("git.part"), _fresh("git.part") / _REPOSITORY
    tree = work / "tree"
    tree.mkdir()
    words = ["git", "-C", str(tree), "-c", "user.name=bench", "-c", "user.email=bench@bench.invalid"]
    _fetch([*words, "init", "--quiet", "--initial-branch=main"], work)
    for number in range(2):
        for file in range(_FILES):
            folder = tree / f"{file % 20:02}"
            folder.mkdir(exist_ok=True)
            (folder / f"{file:03}").write_bytes(os.urandom(_SIZE // _FILES))
        _fetch([*words, "add", "."], work)
        _fetch([*words, "commit", "--quiet", "--message", f"{number}"], work)
    bare.parent.mkdir(parents=True)
    _fetch(["git", "clone", "--quiet", "--bare", str(tree), str(bare)], work)
    shutil.rmtree(tree)
    work.rename(root)


def _fresh(name: str) -> Path:
    path = KEPT / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def _fetch(argv: list[str], work: Path) -> None:
    try:
        done = subprocess.run(argv, cwd=work, capture_output=True, text=True, timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"`{Path(argv[0]).name}` took longer than {_LONGEST} seconds") from None
    if done.returncode:
        raise UnreachableError(
            f"`{Path(argv[0]).name}` ended with {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
        )


def fetch(names) -> dict[str, str]:
    """Fetch what measurements of these names need; return why of those that can't have it."""
    problems = {}
    for name in names:
        try:
            FETCHED[name]()
        except (UnreachableError, servers.MissingError) as error:
            problems[name] = str(error)
    return problems


FETCHED = {"npm-install": npm, "pip-download": pip, "git-clone": git}

# --- in it ---


class Commands:
    """A program that runs commands outside, and one inside a sandbox; git's server beside the origin."""

    def __init__(self, work: Path, closing) -> None:
        (work / "origin" / "packages").symlink_to(KEPT)
        log = work / "packages.out"
        backend = servers.start([sys.executable, "-m", "tests.bench.packages"], core=None, log=log)
        closing.callback(servers.stop, backend)
        servers.wait_for(backend, (world.ORIGIN, world.GIT), log)
        self.processes: tuple[int, ...] = ()
        self.asked = {}
        for name in ("direct", "exeat"):
            workspace = work / f"commands-{name}"
            workspace.mkdir()
            program = workspace / "command.py"
            program.write_bytes(Path(__file__).with_name("command.py").read_bytes())
            argv = [os.path.realpath(sys.executable), program.name]
            here = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
            environment = {**here, "XDG_STATE_HOME": str(work / "state")}
            if name == "exeat":
                rules = work / "packages.yaml"
                rules.write_text(_RULES.format(host=world.INSPECTED, origin=world.ORIGIN))
                options = ["--rules", rules, "--workspace", workspace, "--read", sys.base_prefix, "--quiet"]
                argv = [*exeat("run", *options, "--journal", work / "commands-journal"), "--", *argv]
            else:
                roots = ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PIP_CERT")  # in a sandbox they are set
                environment |= dict.fromkeys(roots, world.TRUST)
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = servers.start(argv, core=None, log=log, cwd=workspace, env=environment, **pipes)
            closing.callback(servers.stop, process)
            self.asked[name] = Asked(process, log)
            self.asked[name].ask("ready")
            if name == "exeat":
                self.processes = cost.family(process.pid)

    def times(self, argv: list[str], rounds: int, environment: dict[str, str]) -> dict[str, Figure]:
        """How long a command takes on both ways, in turns; both have to make the same."""
        made = set()

        def once(name: str) -> dict[str, float]:
            told = self.asked[name].ask("run", argv=argv, environment=environment)
            made.add((told["files"], told["bytes"]))
            return {"took": told["seconds"]}

        for name in self.asked:  # what is read once is in memory then
            once(name)
        found = figures.in_turns(list(self.asked), rounds, once, name=lambda way: way)["took"]
        files, size = max(made)
        if min(files for files, _ in made) != files:
            raise RuntimeError(f"{argv[0]} didn't make the same everywhere: {sorted(made)}")
        return {"took": Figure(f"to its end, with {files} files, {size / 1e6:.0f} MB", "s", 2, found)}


def npm_install() -> tuple[list[str], dict[str, str]]:
    """A command and its environment: a fresh cache each time."""
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--cache", "{here}/cache"]
    registry = ["--registry", f"{_AT}/packages/npm/registry/", "--userconfig", os.devnull]
    return ["npm", "install", "--prefix", "{here}", *options, *registry, *NODE], {}


def pip_download() -> tuple[list[str], dict[str, str]]:
    """The same with pip, whose configuration is none."""
    options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--dest", "{here}"]
    index = ["--index-url", f"{_AT}/packages/pip/simple/"]
    return [os.path.realpath(sys.executable), "-m", "pip", "download", *options, *index, *WHEELS], _no_pip_settings()


def _no_pip_settings() -> dict[str, str]:
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_CONSTRAINT": ""}


def git_clone() -> tuple[list[str], dict[str, str]]:
    """The same with git."""
    return ["git", "clone", "--quiet", "--depth", "1", f"{_AT}/{_REPOSITORY}", "{here}/clone"], {}


class _Backend(http.server.BaseHTTPRequestHandler):
    """git over smart HTTP, by git's own CGI program (git-http-backend(1)); nginx stands before it."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        length = self.headers.get("Content-Length", "")
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "GIT_PROJECT_ROOT": str(KEPT / "git"),
            "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": self.command, "PATH_INFO": path, "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": length,
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_ADDR": "127.0.0.1",
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip
        pipe = subprocess.PIPE
        with subprocess.Popen(["git", "http-backend"], stdin=pipe, stdout=pipe, env=environment) as program:
            program.stdin.write(self.rfile.read(int(length or 0)))
            program.stdin.close()
            status, headers = HTTPStatus.OK, []
            while line := program.stdout.readline().strip():
                name, _, value = line.decode("latin-1").partition(": ")
                if name.lower() == "status":
                    status = int(value.split()[0])
                else:
                    headers.append((name, value))
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            shutil.copyfileobj(program.stdout, self.wfile, 1 << 16)

    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer((world.ORIGIN, world.GIT), _Backend).serve_forever()
