"""Learns rules from events and formats them briefly."""

from proxy.telemetry.replay.learner import Learner, without_secrets
from rules.learning.generalize import write_pattern
from rules.learning.writing import write_rule_file
from rules.loading.load import failures
from tests.rules.rule_texts import loaded


def learned(*events):
    """Return the drafts and the rule file."""
    learner = Learner()
    for event in events:
        learner.take(event)
    drafted = learner.result()
    return drafted, write_rule_file(drafted, ("Learned.",), "learned", without_secrets)


def rules_of(*events):
    """Return the learned rules in short form, after loading the file and running its tests."""
    drafted, text = learned(*events)
    file = loaded(text)
    assert failures(file) == []
    assert len(file.tests) == len(drafted.drafts)
    return [
        " ".join(
            filter(
                None,
                (
                    draft.action,
                    ",".join(draft.methods or ()),
                    f"{draft.place.target}:{draft.place.port}/{draft.place.protocol}",
                    " ".join(write_pattern(path) or "?" for path in draft.paths or ()),
                    "websocket" * draft.websocket,
                    "body" * draft.body,
                    "splice" * draft.splice,
                    ""
                    if draft.git is None
                    else " ".join(("git", *draft.git.repos, *draft.git.refs, draft.git.change or "fetch")),
                    " ".join(map(str, draft.resolves_to)),
                    " ".join(draft.dns_types),
                ),
            )
        )
        for draft in drafted.drafts
    ]
