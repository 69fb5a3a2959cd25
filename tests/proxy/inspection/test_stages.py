"""The list of stages, and what is left of those that a request went through when one of them raises."""

from types import SimpleNamespace

import pytest

from proxy.inspection import session as sessions
from proxy.inspection.judging import Place
from proxy.inspection.request_context import RequestContext
from proxy.inspection.stages.stage import Stage
from proxy.request.request_head import Head
from rules.names import HostName
from rules.verdicts import Outcome, Scan, Trust

ENDED = []


class Holding(Stage):
    def end(self):
        ENDED.append("holding")


class Broken(Stage):
    def admit(self, ruling):
        raise ValueError(f"a stage has a fault: {ruling}")


def test_a_stage_that_raises_leaves_nothing_taken_of_those_before_it(monkeypatch):
    monkeypatch.setattr(sessions, "stages_for", lambda _needs: (Holding, Broken))
    tenant = SimpleNamespace(broker=None)
    session = sessions.Session(SimpleNamespace(tenant=tenant), Place(HostName("good.example"), 443, tls=True), "")
    request = RequestContext("1", Head(b"HTTP/1.1", b"GET", b"", b"", b"/", ()), body=False)
    decision = SimpleNamespace(outcome=Outcome.PASSED, scan=Scan.OFF, trust=Trust.TRUSTED, limits=())
    with pytest.raises(ValueError, match="a fault"):
        session._through_stages(request, SimpleNamespace(decision=decision, asked=True, grants=()))
    assert ENDED == ["holding"]
