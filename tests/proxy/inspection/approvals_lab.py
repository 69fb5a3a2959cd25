"""A gate with an approvals server and one origin, whose requests need approval."""

import pytest

from rules.attempt import Attempt, Protocol
from rules.values.names import HostName
from tests.proxy.approvals.people_harness import People
from tests.proxy.inspection.inspection_lab import Site
from tests.support.waiting import wait_until

READ = "{id: read, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/KIND], action: allow, http: {methods: [GET]}}"
WRITE = (
    "{id: write, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/KIND], action: allow, "
    "http: {methods: [POST, PUT], body: true}}"
)
ASK = (
    "{id: ask, to: good.example, ports: [PORT/KIND], action: ask, http: {methods: [POST, DELETE]}, "
    "approval: {hold: 60s, open: 1h}}"
)


class ApprovalsLab:
    """A gate, its approvers, and one origin."""

    def __init__(self, gate, people, site, origin):
        self.gate = gate
        self.people = people
        self.site = site
        self.origin = origin

    def rules(self, *rules):
        kind = "tls" if self.site.tls else "http"
        self.gate.rules("[" + ", ".join(rules).replace("PORT", str(self.origin.port)).replace("KIND", kind) + "]")

    def approval_id(self, count=1):
        """Wait for the nth approval request and return its id."""
        wait_until(lambda: len(self.people.asked()) >= count)
        return self.people.asked()[count - 1]

    def run(self, function, *arguments):
        return self.gate.loop.run(function, *arguments)

    def review(self):
        """Review the open connections, as `proxy.worker.policy_swap` does after a reload."""
        protocol = Protocol.TLS if self.site.tls else Protocol.HTTP
        attempt = Attempt(protocol, HostName("good.example"), self.origin.port, at=self.gate.sandbox.calendar.today())

        def review_all():
            for connection in list(self.gate.inspection._engine._connections.values()):
                connection.review(self.gate.sandbox.policy.decide(attempt))

        self.gate.loop.run(review_all)

    def decided(self):
        """Return reason and approval id of every request decided so far."""
        return [(e["reason"], e.get("approval", {}).get("id", "")) for e in self.gate.events("request.decided")]

    def nothing_sent(self):
        return self.origin.connections == 0 and self.origin.requests == []

    def request(self, method="POST", path="/upload", more="", body="hello"):
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.site.host}\r\n{length}{more}\r\n\r\n"
        return (head + body).encode()


@pytest.fixture
def approvals_lab(gate, origins, tmp_path, request):
    tls = getattr(request, "param", True)
    people = People(tmp_path)
    channel = gate.loop.run(people.open)
    gate.loop.run(lambda: people.behind(gate.recorder, gate.dialer.poller, channel))
    origin = origins.web("good.example", tls=tls)
    gate.name(good_example="127.0.0.1")
    site = Site(gate, "good.example", origin.port, gate.listen_for("good.example", origin.port, tls=tls), tls)
    lab = ApprovalsLab(gate, people, site, origin)
    lab.rules(READ, WRITE, ASK)
    yield lab
    gate.loop.run(gate.inspection.close)
    gate.loop.run(gate.sandbox.approvals.close)
    gate.loop.run(people.close)


TLS_AND_PLAIN = pytest.mark.parametrize("approvals_lab", [True, False], ids=["tls", "plain"], indirect=True)
