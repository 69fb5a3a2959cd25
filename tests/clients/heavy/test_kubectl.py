"""kubectl against a cluster that wants a client certificate: the gate shows it, and kubectl has none."""

import os

import pytest

from tests.lab import Lab
from tests.lab.certificates import Authority

from . import program

PORT = 6443
RULES = """
version: 1
name: kube
{secrets}
rules:
  - {{id: reads, to: api.open.example, ports: [{port}/tls], http: {{methods: [GET, POST], paths: ["/**"]}}, action: allow}}
"""
SECRETS = "secrets: [{{id: cluster, from: {{file: {path}}}, hosts: 'api.open.example:{port}', in: client_certificate}}]"
# Without any credential it asks for a user's name
CONFIG = f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "https://api.open.example:{PORT}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u, namespace: default}}}}]
users: [{{name: u, user: {{token: none}}}}]
current-context: c
"""


@pytest.fixture(scope="module")
def tried(world):
    """Each command with the gate's certificate and without."""
    authority = Authority.load(world.lab.directory / "ca.key")
    trusted = world.lab.directory / "clients-ca.pem"
    trusted.write_bytes(authority.pem())
    world.serve("tests.clients.heavy.kube_api", world.leaf("api.open.example"), trusted, PORT, port=PORT)
    identity = world.lab.home(Lab.ORDINARY) / "cluster.pem"
    identity.touch(0o600)
    identity.write_bytes(authority.leaf("agent.example"))
    os.chown(identity, Lab.ORDINARY, Lab.ORDINARY)
    kubectl = [program("kubectl"), "--kubeconfig", "config", "--request-timeout=20s"]
    commands = [*kubectl, "get", "pods"], [*kubectl, "exec", "web", "--", "true"]
    found = {}
    for name, secrets in (("shown", SECRETS.format(path=identity, port=PORT)), ("none", "")):
        rules = world.place.rules(RULES.format(secrets=secrets, port=PORT), f"kube-{name}.yaml")
        found[name] = world.run(*commands, rules=rules, files={"config": CONFIG.encode()})
    return found


def test_kubectl_reads_a_cluster_through_the_gate(tried):
    listed = tried["shown"].said[0]
    assert listed.ok, listed
    assert "web" in listed.out


def test_kubectl_exec_prints_why_its_protocol_is_denied(tried):
    """Newer ones try WebSocket first, which the rule doesn't allow, older ones SPDY alone."""
    ran = tried["shown"].said[1]
    assert not ran.ok
    reasons = {
        each["reason"] for each in tried["shown"].journal.of(kind="request.decided") if each["outcome"] == "blocked"
    }
    assert reasons & {"protocol_mismatch", "no_rule"}, ran


def test_missing_client_certificate_is_explained(tried):
    assert not tried["none"].said[0].ok
    details = {each.get("detail", "") for each in tried["none"].journal.of(kind="request.completed")}
    assert any("asks for a client certificate" in detail for detail in details), details
