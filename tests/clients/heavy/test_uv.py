"""uv, which is Rust with rustls: what is allowed is installed, what is denied says so."""

from tests.clients import registries
from tests.invariants.lab_runner import PYTHON

from . import HOME, program

URL = "https://www.open.example/files/uv"


def test_uv(world):
    registries.simple(world.files / "uv")
    words = [program("uv"), "--no-config", "pip", "install", "--python", PYTHON, "--target", "got", "--index-url"]
    tried = world.run(
        [*words, f"{URL}/simple", "lefty"],
        ["sh", "-c", "cd got && python3 -S -c 'import lefty; print(lefty.SAYS)'"],
        [*words, "https://www.denied.example/simple", "righty"],
        read=[HOME],
    )
    installed, used, denied = tried.said
    assert installed.ok, installed.err
    assert used.out.strip() == registries.SAYS
    assert "An index (https://www.denied.example/simple) returned a 403 Forbidden error" in denied.err
