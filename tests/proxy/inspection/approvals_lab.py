"""People behind a gate, and one origin that they are asked about."""

import pytest

from rules.attempt import Attempt, Protocol
from rules.names import HostName
from tests.proxy.approvals.people_harness import People
from tests.proxy.inspection.clients import wait_for
from tests.proxy.inspection.inspection_lab import Site

READ = "{id: read, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/KIND], action: allow, http: {methods: [GET]}}"
WRITE = (
    "{id: write, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/KIND], action: allow, "
    "http: {methods: [POST, PUT], body: true}}"
)
ASK = (
    "{id: ask, to: good.example, ports: [PORT/KIND], action: ask, http: {methods: [POST, DELETE]}, "
    "approval: {hold: 60s, open: 1h}}"
)


class Desk:
    """A gate, the people behind it, and one origin."""

    def __init__(self, gate, people, place, origin):
        self.gate = gate
        self.people = people
        self.place = place
        self.origin = origin

    def rules(self, *rules):
        kind = "tls" if self.place.tls else "http"
        self.gate.rules("[" + ", ".join(rules).replace("PORT", str(self.origin.port)).replace("KIND", kind) + "]")

    def question(self, count=1):
        wait_for(lambda: len(self.people.asked()) >= count)
        return self.people.asked()[count - 1]

    def do(self, what, *words):
        return self.gate.loop.run(what, *words)

    def review(self):
        """Have what is open reviewed, as `proxy.worker.policy_swap` does."""
        protocol = Protocol.TLS if self.place.tls else Protocol.HTTP
        attempt = Attempt(protocol, HostName("good.example"), self.origin.port, at=self.gate.sandbox.calendar.today())

        def look():
            for one in list(self.gate.inspection._engine._connections.values()):
                one.review(self.gate.sandbox.policy.decide(attempt))

        self.gate.loop.run(look)

    def told(self):
        """Reasons and approvals of the requests so far."""
        return [(e["reason"], e.get("approval", {}).get("id", "")) for e in self.gate.events("request.decided")]

    def untouched(self):
        return self.origin.connections == 0 and self.origin.requests == []

    def request(self, method="POST", path="/upload", more="", body="hello"):
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.place.host}\r\n{length}{more}\r\n\r\n"
        return (head + body).encode()


@pytest.fixture
def desk(gate, origins, tmp_path, request):
    tls = getattr(request, "param", True)
    people = People(tmp_path)
    channel = gate.loop.run(people.open)
    gate.loop.run(lambda: people.behind(gate.recorder, gate.dialer.poller, channel))
    origin = origins.web("good.example", tls=tls)
    gate.name(good_example="127.0.0.1")
    place = Site(gate, "good.example", origin.port, gate.door("good.example", origin.port, tls=tls), tls)
    made = Desk(gate, people, place, origin)
    made.rules(READ, WRITE, ASK)
    yield made
    gate.loop.run(gate.inspection.close)
    gate.loop.run(gate.sandbox.approvals.close)
    gate.loop.run(people.close)


BOTH = pytest.mark.parametrize("desk", [True, False], ids=["tls", "clear"], indirect=True)
