"""cargo against a sparse registry of our own."""

from pathlib import Path

from tests.clients import registries

from . import asked, program

URL = "https://www.open.example/files/cargo"
SCRIPT = """
export CARGO_HOME="$PWD/cargo-home" CARGO_REGISTRIES_LAB_INDEX="sparse+$1/" CARGO_NET_RETRY=0 RUSTC="$3/bin/rustc"
mkdir -p made/src && cd made && touch src/lib.rs
printf '[package]\\nname = "made"\\nversion = "1.0.0"\\nedition = "2021"\\n[dependencies]\\n%s = {version = "1", registry = "lab"}\\n' "$2" >Cargo.toml
"$3/bin/cargo" fetch && cat "$CARGO_HOME"/registry/src/*/lefty-1.0.0/src/lib.rs
"""


def test_cargo(world):
    registries.sparse(world.files, URL)
    root = Path(asked(program("rustc"), "--print", "sysroot"))
    tried = world.run(
        ["sh", "-c", SCRIPT, "sh", URL, "lefty", root],
        ["sh", "-c", SCRIPT, "sh", "https://www.denied.example/cargo", "righty", root],
        read=[root],
        root=True,
    )
    fetched, denied = tried.said
    assert fetched.ok, fetched.err
    assert registries.SAYS in fetched.out
    assert "got 403" in denied.err
    assert '"title": "no rule allows this"' in denied.err
