"""A rule's `ca`: certificates that are trusted for what it matches, beside the host's own, and for nothing else."""

import pytest

from tests.lab import certificates
from tests.proxy.inspection.inspection_clients import until, wait_for
from tests.proxy.inspection.inspection_harness import site


@pytest.fixture
def company(gate, origins, monkeypatch):
    """An origin whose certificate is of a CA that the host doesn't know, and a file with that CA."""
    own = certificates.Authority.make()
    (gate.directory / "company.pem").write_bytes(own.pem())
    (gate.directory / "other.pem").write_bytes(certificates.Authority.make().pem())
    monkeypatch.setattr(origins, "authority", own)
    origin = origins.web("good.example")
    place = site(gate, origin)

    def rules(*more):
        said = ", ".join(
            f"{{id: r{at}, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow{one}}}"
            for at, one in enumerate(more)
        )
        gate.rules(f"[{said}]")
        return place, origin

    return rules


def answers(place, *paths, alpn=("http/1.1",)):
    """Ask for one path after another on one connection, and return the status of each answer."""
    found = []
    with place.connect(alpn) as connection:
        for path in paths:
            connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
            found.append(int(until(connection, b"\r\n\r\n").split()[1]))
    return found


CASES = {
    "none": ([""], 502),
    "the company's": ([", ca: company.pem"], 200),
    "another": ([", ca: other.pem"], 502),
    "on one of two rules": ([", ca: company.pem", ""], 200),
    "two": ([", ca: company.pem", ", ca: other.pem"], 200),
}


@pytest.mark.parametrize(("rules", "status"), CASES.values(), ids=CASES)
def test_what_is_trusted(gate, company, rules, status):
    place, origin = company(*rules)
    assert answers(place, "/echo") == [status]
    wait_for(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert completed.get("reason") == (None if status == 200 else "upstream_untrusted")
    assert len(origin.requests) == (status == 200)


def test_the_host_s_own_are_trusted_still(gate, origins):
    (gate.directory / "other.pem").write_bytes(certificates.Authority.make().pem())
    origin = origins.web("good.example")
    place = site(gate, origin)
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow, ca: other.pem}}]"
    )
    assert answers(place, "/echo") == [200]


def test_a_connection_that_took_more_trust_carries_nothing_that_has_less(gate, company):
    place, origin = company(", ca: company.pem, http: {paths: [/a]}", ", http: {paths: [/b]}")
    assert answers(place, "/a", "/b") == [200, 502]
    assert [(line[1], line[2]) for line in gate.decided()] == [("/a", "passed"), ("/b", "passed")]
    assert [request.target for request in origin.requests] == ["/a"]
    assert [e.get("reason") for e in gate.events("request.completed")] == [None, "upstream_untrusted"]


def test_a_new_file_s_trust_ends_with_its_rules(gate, company):
    place, _ = company(", ca: company.pem")
    assert answers(place, "/echo") == [200]
    company("")
    assert answers(place, "/echo") == [502]


@pytest.mark.parametrize(("file", "status"), [("company.pem", 200), ("other.pem", 502)])
def test_what_settings_trust_is_trusted_everywhere(gate, company, file, status):
    place, origin = company("")
    rule = f"{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow}}"
    gate.rules(f"[{rule}]", f"settings: {{upstream_ca: {gate.directory / file}}}")
    assert answers(place, "/echo") == [status]


def test_a_name_has_to_be_the_certificate_s_all_the_same(gate, origins, monkeypatch):
    own = certificates.Authority.make()
    (gate.directory / "company.pem").write_bytes(own.pem())
    monkeypatch.setattr(origins, "authority", own)
    origin = origins.web("other.example")
    place = site(gate, origin)
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow, ca: company.pem}}]"
    )
    assert answers(place, "/echo") == [502]
    assert gate.events("request.completed")[0]["reason"] == "upstream_untrusted"
