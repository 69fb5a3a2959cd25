import pytest

from tests.lab import Lab, Name
from tests.support import harness

NAMES = {
    "good.example": Name.at("93.184.216.34", "2606:2800:220:1::1"),
    "four.example": Name.at("93.184.216.35"),
    "*.wild.example": Name.at("93.184.216.36"),
    "alias.example": Name(alias="four.example"),
    "rebinds.example": Name.rebinding(("93.184.216.37",), ("169.254.169.254",), ("127.0.0.1", "::1")),
    "inside.example": Name.at("10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe"),
    "here.example": Name.at("127.0.0.1", "::1"),
    "servfail.example": Name(fails="servfail"),
    "silent.example": Name(fails="silent"),
    "big.example": Name.at("93.184.216.38", truncated=True, text=("one", "two")),
    "self-signed.example": Name.at("93.184.216.39", certificate="self-signed"),
    "expired.example": Name.at("93.184.216.39", certificate="expired"),
    "wrong.example": Name.at("93.184.216.39", certificate="wrong-name"),
}


@pytest.fixture(scope="module")
def shared_lab():
    harness.needs_root()
    with Lab(NAMES, hosts={"listed.example": "93.184.216.40 2606:2800:220:1::40"}) as made:
        yield made


@pytest.fixture
def lab(shared_lab):
    """The shared lab, with its records cleared and its names reset."""
    shared_lab.origin.name(NAMES)
    shared_lab.origin.forget()
    shared_lab.loopback.forget()
    return shared_lab
