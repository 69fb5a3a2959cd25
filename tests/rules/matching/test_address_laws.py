"""Address checks as properties of every rule set: address literals, and addresses that names resolve to."""

from hypothesis import given
from hypothesis import strategies as st

from rules.addresses import network_opens, normalize, why_not_public
from rules.matching.policy import Policy
from rules.matching.reference import is_granted
from rules.names import HostName
from rules.verdicts import Mode, Outcome, Reason, Verdict
from tests.rules.drawing import ADDRESSES, answered, attempts, connections, granting, many, modes, pools, seen


@many
@given(pools, modes, attempts, answered)
def test_name_rules_and_address_rules_never_cross(pool, given_settings, attempt, numbers):
    is_name = isinstance(attempt.target, HostName)
    enforced = given_settings._replace(mode=Mode.ENFORCE)
    others = [rule._replace(networks=()) if not is_name else rule._replace(names=()) for rule in pool]
    decision = Policy(others, enforced).decide(granting(attempt, others, numbers))
    assert not decision.passes
    assert not decision.needs_approval


@many
@given(pools, modes, attempts, answered)
def test_nonpublic_address_passes_only_if_listed(pool, given_settings, attempt, numbers):
    attempt = granting(attempt, pool, numbers)
    if isinstance(attempt.target, HostName) or why_not_public(attempt.target) is None:
        return
    decision = Policy(pool, given_settings).decide(attempt)
    assert decision.outcome is not Outcome.WOULD_BLOCK, "audit mode lets it out"
    if decision.passes or decision.needs_approval:
        asking = [] if decision.allows and not attempt.granted else [Verdict.ASK]
        opening = [rule for rule in pool if rule.allows or rule.action in asking]
        assert any(network_opens(network, attempt.target) for rule in opening for network in rule.networks)


@many
@given(pools, modes, connections | seen, st.sampled_from(ADDRESSES), answered)
def test_dialled_address_is_allowed_by_a_rule(pool, given_settings, attempt, address, numbers):
    attempt = granting(attempt, pool, numbers)
    policy = Policy(pool, given_settings)
    address = normalize(address)
    reason = policy.check_address(attempt, address)
    if not policy.decide(attempt).allows:
        assert reason is not None, "what is to be asked about is nothing to be dialled"
    if reason is not None:
        return
    if why_not_public(address) is not None:
        opening = [rule for rule in pool if rule.allows or is_granted(rule, attempt)]
        listed = [n for rule in opening for n in (*rule.networks, *(rule.resolves_to or ()))]
        assert any(address in network for network in listed)
    if not isinstance(attempt.target, HostName):
        assert address == attempt.target
    denied = [
        rule
        for rule in pool
        if rule.action is Verdict.DENY
        and rule.selector is None
        and not rule.default
        and not rule.excepts
        and rule.http is None
        and rule.ports is None
    ]
    assert not any(address in network for rule in denied for network in rule.networks)


@many
@given(pools, modes, seen, st.sampled_from(ADDRESSES), answered)
def test_address_of_a_connection_serves_each_allowed_request(pool, given_settings, attempt, address, numbers):
    """Without the request the check is at least as strict as with any that is let out."""
    attempt = granting(attempt, pool, numbers)
    policy = Policy(pool, given_settings)
    connection = policy.check_address(attempt._replace(request=None), address)
    decision = policy.decide(attempt)
    if connection is not None or not decision.allows:
        return
    with_request = policy.check_address(attempt, address)
    audited = decision.outcome is Outcome.WOULD_BLOCK and why_not_public(address) is not None
    if audited:
        assert with_request is not None or attempt.granted, "audit mode is about public addresses"
    elif with_request is not None:
        # A rule that holds back this very address from this very request; no rule that lets out may differ.
        assert with_request in {
            Reason.RULE, Reason.APPROVAL_UNAVAILABLE, Reason.DEFAULT_RULE, Reason.EXPIRED, Reason.TAINTED
        }  # fmt: skip
