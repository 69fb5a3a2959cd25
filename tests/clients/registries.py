"""What package clients are served by, made small: an index for pip and uv, a repository for apt, a registry for npm."""

import base64
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

NAME = "lefty"
SAYS = "padded by lefty"


def simple(root: Path, name: str = NAME, at: str = "") -> None:
    """An index as PEP 503 has it, with one wheel in it; `at` is where its file is, by default beside it."""
    wheel = f"{name}-1.0-py3-none-any.whl"
    content = io.BytesIO()
    files = {
        f"{name}.py": f"SAYS = {SAYS!r}\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},{_digest(text)},{len(text)}\n" for path, text in files.items())
    with zipfile.ZipFile(content, "w") as archive:
        for path, text in {**files, f"{name}-1.0.dist-info/RECORD": f"{record}{name}-1.0.dist-info/RECORD,,\n"}.items():
            archive.writestr(path, text)
    folder = root / "simple" / name
    folder.mkdir(parents=True)
    (folder / wheel).write_bytes(content.getvalue())
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{at}{wheel}#sha256={sha256}">{wheel}</a>\n')


def _digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def apt(root: Path, work: Path) -> None:
    """A flat repository with one package."""
    tree = work / NAME
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share").mkdir(parents=True)
    (tree / "usr/share/lefty").write_text(SAYS)
    control = f"Package: {NAME}\nVersion: 1.0\nArchitecture: all\nMaintainer: t <t@t.invalid>\nDescription: pads\n"
    (tree / "DEBIAN/control").write_text(control)
    repository = root / "apt"
    repository.mkdir()
    package = repository / f"{NAME}_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, package], check=True, capture_output=True)
    content = package.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    listed = f"{control}Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {sha256}\n"
    (repository / "Packages").write_text(listed)
    sums = f" {hashlib.sha256(listed.encode()).hexdigest()} {len(listed)} Packages"
    (repository / "Release").write_text(f"Origin: t\nSuite: t\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n{sums}\n")


def npm(root: Path, url: str) -> None:
    """A registry with one package, whose archive is at `url`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        files = {
            "package/package.json": json.dumps({"name": NAME, "version": "1.0.0", "main": "index.js"}),
            "package/index.js": f"module.exports = {SAYS!r};\n",
        }
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    registry = root / "npm"
    registry.mkdir()
    (registry / f"{NAME}-1.0.0.tgz").write_bytes(content.getvalue())
    digest = base64.b64encode(hashlib.sha512(content.getvalue()).digest()).decode()
    dist = {"tarball": f"{url}/{NAME}-1.0.0.tgz", "integrity": f"sha512-{digest}"}
    version = {"name": NAME, "version": "1.0.0", "main": "index.js", "dist": dist}
    (registry / NAME).write_text(
        json.dumps({"name": NAME, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}})
    )


def sparse(root: Path, url: str) -> None:
    """A registry of cargo's sparse protocol with one crate, served at `url`."""
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb") as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        files = {
            f"{NAME}-1.0.0/Cargo.toml": f'[package]\nname = "{NAME}"\nversion = "1.0.0"\nedition = "2021"\n',
            f"{NAME}-1.0.0/src/lib.rs": f'pub const SAYS: &str = "{SAYS}";\n',
        }
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    registry = root / "cargo"
    (registry / "le/ft").mkdir(parents=True)
    (registry / "config.json").write_text(json.dumps({"dl": f"{url}/{{crate}}-{{version}}.crate"}))
    (registry / f"{NAME}-1.0.0.crate").write_bytes(content.getvalue())
    entry = {"name": NAME, "vers": "1.0.0", "deps": [], "features": {}, "yanked": False}
    entry["cksum"] = hashlib.sha256(content.getvalue()).hexdigest()
    (registry / "le/ft" / NAME).write_text(json.dumps(entry) + "\n")
