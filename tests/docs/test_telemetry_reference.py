"""docs/reference/telemetry.md and metrics.md list exactly the existing fields, kinds, values and metrics."""

import json
import os
import re
from pathlib import Path

import pytest

from proxy.sandbox.rule_limits import Connections
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Component, Kind
from proxy.telemetry.journal.segments import BEGINNING, link_signed
from proxy.telemetry.prometheus.metrics import PACKET_KINDS
from proxy.wire.refusal_log import Kind as RefusedKind
from rules.attempt import Protocol
from rules.decision import Limits
from rules.verdicts import Mode, Outcome, Verdict
from tests.support.telemetry_lab import connect, full_event, recorder_lab

REFERENCE = Path(__file__).parents[2] / "docs/reference"
PAGE = (REFERENCE / "telemetry.md").read_text()
METRICS = (REFERENCE / "metrics.md").read_text()


def table(heading):
    """The first cells of the table under a heading, without their backticks."""
    section = re.split(r"^#+ ", PAGE.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


def leaves(value, prefix=""):
    """The fields of an event as `a.b`; labels are data."""
    for key, inner in value.items():
        if isinstance(inner, dict) and key not in {"labels", "attributes"}:
            yield from leaves(inner, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize(
    ("heading", "of"),
    [("Kinds", Kind), ("Verdicts", Verdict), ("Outcomes", Outcome), ("Faults", Component)],
)
def test_vocabularies_equal_their_documentation(heading, of):
    assert sorted(table(heading)) == sorted(member.value for member in of)


def test_event_fields_equal_their_documentation():
    line, _ = link_signed(encode(full_event(Kind.TASK_ENDED)), BEGINNING, lambda _data: bytes(64))
    assert sorted(table("The event")) == sorted(leaves(json.loads(line)))


@pytest.mark.parametrize("words", [Mode, Protocol, [*PACKET_KINDS, "other"]])
def test_values_of_small_vocabularies_are_documented(words):
    for word in words:
        assert f"`{word}`" in PAGE or f"`{word}`" in METRICS


def test_packet_kinds_are_documented():
    assert {kind.value for kind in RefusedKind} == PACKET_KINDS | {"other"}


def test_metrics_equal_their_documentation(tmp_path):
    lab = recorder_lab(tmp_path)
    metrics = lab.metrics
    lab.recorder.rules_loaded()
    connect(lab.recorder)
    lab.recorder.error(Component.DIAL, "x")
    lab.recorder.task_ended(None, seconds=0.0)
    metrics.dns_query("A", Verdict.DENY)
    metrics.refused_packets({"tcp": 1})
    metrics.refused_call("mount", 1)
    metrics.dialled(None, 0.1)
    metrics.ca_expiry = 1.0
    metrics.limits = lab.recorder.sandbox.meters
    metrics.limits.admit([(lab.recorder.sandbox.policy.rule_ids[0], Limits(requests=5))], Connections())
    metrics.watch("worker", os.getpid())
    text = metrics.render().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE))
    labels = {name: set() for name in types}
    for name, inside in re.findall(r"^(\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? [^ ]+$", text, flags=re.MULTILINE):
        labels[name] |= set(re.findall(r'(\w+)="', inside)) - {"le"}
    documented = {}
    for name, inside, kind in re.findall(
        r"^\| `(\w+)(?:\{([\w,]+)\})?` \| (counter|gauge|histogram) \|", METRICS, flags=re.MULTILINE
    ):
        documented[name] = (kind, set(filter(None, inside.split(","))))
    assert documented == {name: (types[name], labels[name]) for name in types}


def test_log_options_are_documented():
    import argparse

    from enforcer.cli.log import ARGUMENTS
    from enforcer.cli.parsing import add_arguments

    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser, ARGUMENTS)
    section = (REFERENCE / "commands.md").read_text().partition("\n## exeat log\n")[2].partition("\n## ")[0]
    for option, action in parser._option_string_actions.items():
        assert f"`{option}" in section or action.help is argparse.SUPPRESS  # an old spelling
