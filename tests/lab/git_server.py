"""Git over smart HTTP by git-http-backend(1), for the repositories of one directory."""

import asyncio
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(os.environ.get("LAB_GIT_ROOT", "/nonexistent"))
_ENDPOINT = re.compile(r"^/.+/(info/refs|git-upload-pack|git-receive-pack|HEAD|objects/.+)$")
_CLEAN = {"PATH": os.environ.get("PATH", os.defpath), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}


def is_git(path: str) -> bool:
    """Return whether a path is an endpoint of git."""
    return bool(_ENDPOINT.match(path))


async def serve(request, answer) -> None:
    """Run the CGI program for one request, streaming both ways."""
    parts = urlsplit(request.target)
    environment = {
        **_CLEAN,
        "GIT_PROJECT_ROOT": str(ROOT),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": request.method,
        "PATH_INFO": parts.path,
        "QUERY_STRING": parts.query,
        "CONTENT_TYPE": request.header("content-type"),
        "HTTP_CONTENT_ENCODING": request.header("content-encoding"),
        "GIT_PROTOCOL": request.header("git-protocol"),
        "REMOTE_ADDR": request.client[0],
    }
    if length := request.header("content-length"):
        environment["CONTENT_LENGTH"] = length
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec("git", "http-backend", stdin=pipe, stdout=pipe, env=environment)
    feeding = asyncio.create_task(_feed(request, program.stdin))
    try:
        status, headers = 200, []
        while line := (await program.stdout.readline()).strip():
            name, _, value = line.decode("latin-1").partition(": ")
            if name.lower() == "status":
                status = int(value.split()[0])
            else:
                headers.append((name.lower(), value))
        await answer.start(status, headers)
        while data := await program.stdout.read(65536):
            await answer.send(data)
        await answer.end()
    finally:
        feeding.cancel()
        if program.returncode is None:
            program.kill()
        await program.wait()


async def _feed(request, pipe) -> None:
    try:
        async for data in request.body:
            pipe.write(data)
            await pipe.drain()
    except (ConnectionError, BrokenPipeError):
        pass  # the program has stopped reading
    finally:
        pipe.close()


def make_repository(root: Path, name: str, files: dict[str, str]) -> None:
    """Make a bare repository `name` (without .git) with one commit on `main` that anyone may push to."""
    bare = root / f"{name}.git"
    bare.parent.mkdir(parents=True, exist_ok=True)
    git = ["git", "-c", "user.name=lab", "-c", "user.email=lab@lab.invalid", "-c", "init.defaultBranch=main"]

    def run(*arguments: str, directory: Path = bare, text: str = "") -> str:
        done = subprocess.run(
            [*git, *arguments], cwd=directory, env=_CLEAN, input=text, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    run("init", "--quiet", "--bare", str(bare), directory=bare.parent)
    run("config", "http.receivepack", "true")
    blobs = {path: run("hash-object", "-w", "--stdin", text=content) for path, content in files.items()}
    run(
        "update-index",
        "--add",
        "--index-info",
        text="".join(f"100644 {blob}\t{path}\n" for path, blob in blobs.items()),
    )
    commit = run("commit-tree", run("write-tree"), "-m", "first")
    run("update-ref", "refs/heads/main", commit)
    (bare / "index").unlink()
