"""Addresses of allowed names: non-public ones, ones that change, and names without an address."""

import http.client
import json
import os
from ipaddress import ip_address

import pytest

from tests.proxy.inspection.inspection_lab import make_site
from tests.support.waiting import wait_until

ADDRESSES = {
    "loopback": "127.0.0.2",
    "private": "10.0.0.1",
    "metadata": "169.254.169.254",
    "mapped": "::ffff:10.0.0.1",
    "NAT64": "64:ff9b::a9fe:a9fe",
}


@pytest.mark.parametrize("kind", ADDRESSES)
def test_allowed_name_with_non_public_address_is_denied(gate, web, kind):
    site = make_site(gate, web())
    gate.rules(f"[{{id: a, to: good.example, ports: [{site.port}/tls], action: allow}}]")
    gate.name(good_example=ADDRESSES[kind])
    status, out, _ = site.curl("/x")
    problem = json.loads(out)
    assert (status, problem["status"], problem["reason"]) == (0, 403, "non_public_address")
    assert [(event["verdict"], event["reason"]) for event in gate.events("request.decided")] == [
        ("deny", "non_public_address")
    ]
    assert gate.events("request.completed") == []


def test_name_of_the_hosts_own_public_address_is_denied_with_a_remedy(gate, web, monkeypatch):
    own = "93.184.216.34"
    monkeypatch.setattr("proxy.dns.lookup.source_for", lambda _address: ip_address(own))
    site = make_site(gate, web())
    gate.rules(f"[{{id: a, to: good.example, resolves_to: {own}, ports: [{site.port}/tls], action: allow}}]")
    gate.name(good_example=own)
    problem = json.loads(site.curl("/x")[1])
    (event,) = gate.events("request.decided")
    assert problem["reason"] == event["reason"] == "non_public_address"
    assert problem["detail"] == event["detail"] == f"`good.example` is {own}, which is this host's own"
    assert problem["remedy"].startswith("no `resolves_to` opens this host's own public address: ")
    assert "`to: host.exeat.internal`" in problem["remedy"]


def test_name_that_moves_to_a_private_address_is_denied(gate, web):
    """An open connection keeps its checked address; a new connection is checked again."""
    origin = web()
    site = make_site(gate, origin)
    assert site.curl("/1", "-o", os.devnull, "-w", "%{http_code}")[1] == b"200"
    gate.name(good_example="10.0.0.1")
    wait_until(lambda: gate.lookup._hosts.refresh() or True)
    gate.loop.run(gate.lookup._cache.clear)
    assert site.curl("/2", "-o", os.devnull, "-w", "%{http_code}")[1] == b"403"
    assert [request.target for request in origin.requests] == ["/1"]


def test_name_without_an_address_fails_as_unresolved(gate, web):
    site = make_site(gate, web())
    gate.name()
    gate.loop.run(gate.lookup._cache.clear)
    _, out, _ = site.curl("/x")
    problem = json.loads(out)
    assert (problem["status"], problem["reason"], problem["verdict"]) == (502, "unresolved", "allow")
    assert [(e["verdict"], e["outcome"], e["reason"]) for e in gate.events("request.decided")] == [
        ("allow", "failed", "unresolved")
    ]


def test_open_server_connection_is_not_reused_for_an_unlisted_address(gate, web):
    """A connection to an address that one request may use is not reused for a request that may not."""
    origin = web()
    site = make_site(gate, origin)
    gate.rules(
        f"""
  - {{id: inside, to: good.example, ports: [{origin.port}/tls], resolves_to: [127.0.0.1/32],
     http: {{paths: ["/inside/**"]}}, action: allow}}
  - {{id: outside, to: good.example, ports: [{origin.port}/tls], http: {{paths: ["/outside/**"]}}, action: allow}}
"""
    )
    client = http.client.HTTPSConnection(site.host)
    client.sock = site.connect()
    found = []
    for path in ("/inside/1", "/outside/1", "/inside/2"):
        client.request("GET", path)
        response = client.getresponse()
        response.read()
        found.append(response.status)
    assert found == [200, 403, 200]
    assert [request.target for request in origin.requests] == ["/inside/1", "/inside/2"]
    client.close()
