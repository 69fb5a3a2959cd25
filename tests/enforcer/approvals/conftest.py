import pytest

from .world import People, world


@pytest.fixture(
    scope="session",
    params=[pytest.param(who, marks=pytest.mark.xdist_group(f"held-{who}")) for who in ("root", "user")],
)
def here(request):
    """A lab, a registry and its people, for root and for an ordinary user: made once each."""
    with world(request.param == "user") as made:
        yield made


def answers(tokens):
    """What is said to each question, by a word of it."""
    return {
        "/ask/approved": [{"vote": "approve", "why": "fine"}],
        "/ask/rejected": [{"vote": "reject", "why": "not on a Friday"}],
        "/ask/forged": [{"vote": "approve", "token": tokens["mallory"]}, {"vote": "reject"}],
        "/ask/two": [{"vote": "approve", "token": tokens[name]} for name in ("ada", "ada", "bo")],
        "refs/heads/other": [{"vote": "reject", "why": "one at a time"}],
        "refs/heads/main": [{"vote": "approve", "why": "reviewed"}],
        "refs/heads/release": [{"vote": "reject", "why": "frozen until Monday"}],
    }


@pytest.fixture(scope="session")
def tried(here):
    """Every attempt of `inside`, made once: what the task saw, and what those saw who answered."""
    here.lab.origin.forget()
    with People(here, answers(here.tokens)) as people:
        seen, here.told = here.done(here.start("held", "everything"))
    return seen, people.said, here.lab.origin.requests()
