"""Services of the host are reachable only by `host.exeat.internal`, under a rule for that name."""

import pytest

from tests.lab import Name
from tests.support.ports import free_port

from .attempt_network import EVIL, RULES, dns_names
from .lab_runner import LIBRARIES, Journal, only_as_ordinary_user

pytestmark = only_as_ordinary_user

HOST, GATE_NAME = "host.exeat.internal", "exeat.internal"
OURS = f"  - {{id: ours, to: {HOST}, ports: [80, 443/tcp, METRICS/tcp, METRICS/http], action: allow}}\n"
WIDE = """
version: 1
name: wide
rules:
  - {id: wide, to: "*", ports: [80, 443, 443/tcp], tls: splice, action: allow}
  - {id: internal, to: "**.internal", ports: [80], action: allow}
  - {id: there, to: "*.allowed.example", ports: [80], action: allow}
"""
AUDIT = "version: 1\nname: audited\nsettings: {mode: audit}\n"
# Names whose DNS records point to the loopback or name the host, and the internal names themselves.
REDIRECTED = {
    "rebound.more.allowed.example": Name.rebinding(("93.184.218.1",), ("127.0.0.1",)),
    "inward.more.allowed.example": Name.at("127.0.0.1", "::1"),
    "mapped.more.allowed.example": Name.at("::ffff:127.0.0.1"),
    "alias.more.allowed.example": Name(alias=HOST),
    "other.more.allowed.example": Name.at("127.0.0.2"),
    HOST: Name.at(EVIL),
    "sub.host.exeat.internal": Name.at(EVIL),
    GATE_NAME: Name.at("127.0.0.1"),
}
ELSEWHERE = (
    "sub.host.exeat.internal",
    "hosts.exeat.internal",
    *(n for n in REDIRECTED if "allowed" in n),
)


@pytest.fixture(scope="module")
def host_run(runner):
    """Results of a task for each name and kind of rules, and the records of the loopback."""
    origin, loopback = runner.lab.origin, runner.lab.loopback
    origin.name({**dns_names(), **REDIRECTED})
    origin.forget()
    port = free_port()
    found = {}
    kinds = {
        "ours": RULES + OURS,
        "real": RULES.replace("rules:", "settings: {dns: real}\nrules:") + OURS,
        "wide": WIDE,
        "audit": AUDIT,
    }
    for kind, text in kinds.items():
        loopback.forget()
        rules = runner.rules(text.replace("METRICS", str(port)), f"{kind}.yaml")
        options = ("--metrics", f"127.0.0.1:{port}")
        with runner.start_steps(f"host-{kind}", rules, "reloaded", LIBRARIES, options=options) as steps:
            results = {name: steps("local", name, 80) for name in (HOST, "HOST.Exeat.INTERNAL.", GATE_NAME, *ELSEWHERE)}
            results["its address"] = steps("resolve", HOST)
            results["another port"] = steps("local", HOST, 8080)
            results["metrics"] = steps("local", HOST, port)
        found[kind] = {
            "said": results, "packets": loopback.packets(), "requests": loopback.requests(),
            "journal": Journal(runner.journal(f"host-{kind}")),
        }  # fmt: skip
    return found, origin.queries()


@pytest.mark.parametrize("kind", ["ours", "real"])
def test_host_name_reaches_the_loopback_of_the_host(host_run, kind):
    results = host_run[0][kind]["said"]
    assert (results[HOST], results["HOST.Exeat.INTERNAL."]) == (200, 200)
    assert results["its address"].startswith(
        "198.18."
    )  # a pool address under any DNS setting, because the loopback is that of the sandbox
    queried = [
        request for request in host_run[0][kind]["requests"] if request["authority"].lower().startswith("host.exeat")
    ]
    assert len(queried) == 2
    recorded = host_run[0][kind]["journal"].of(kind="request.decided", destination__name=HOST)
    assert {event["rules"][0] for event in recorded} == {"tried:ours"}


@pytest.mark.parametrize("kind", ["ours", "real"])
def test_other_names_do_not_reach_the_loopback_of_the_host(host_run, kind):
    results = host_run[0][kind]["said"]
    for name in ELSEWHERE:
        # The rebinding name is public at its first lookup, and so is the target of the alias.
        outside = name in {"rebound.more.allowed.example", "alias.more.allowed.example"}
        assert results[name] in {"non_public_address", "unresolved", 200 if outside else "non_public_address"}, name
    assert results[GATE_NAME] == 404  # answered by the gate itself
    assert results["another port"] != 200
    queried = {request["authority"].lower().partition(":")[0].rstrip(".") for request in host_run[0][kind]["requests"]}
    assert queried == {HOST}


@pytest.mark.parametrize("kind", ["wide", "audit"])
def test_wildcards_and_audit_mode_do_not_allow_host_services(host_run, kind):
    found = host_run[0][kind]
    assert 200 not in {
        found["said"][name] for name in (HOST, "HOST.Exeat.INTERNAL.", GATE_NAME, "sub.host.exeat.internal")
    }
    assert found["requests"] == []
    assert {event["outcome"] for event in found["journal"].of(kind="connection.decided", destination__name=HOST)} <= {
        "blocked"
    }


@pytest.mark.parametrize("kind", ["ours", "real", "wide", "audit"])
def test_metrics_port_of_the_gate_is_not_reachable(host_run, kind):
    # Metrics listen on 127.0.0.1, which the gate does not dial; nothing listens on ::1.
    expected = "upstream_failed" if kind in {"ours", "real"} else "non_public_address"
    assert host_run[0][kind]["said"]["metrics"] == expected


def test_internal_names_are_not_resolved_upstream(host_run):
    _, queries = host_run
    assert [name for name, *_ in queries if "exeat.internal" in name] == []
