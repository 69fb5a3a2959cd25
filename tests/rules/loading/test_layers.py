"""What root's files say holds while a task runs, whether other files can be read again or not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.loading.layers import put_over
from rules.loading.load import read
from rules.matching.layers import Layer, rank_decision
from rules.matching.policy import Policy
from rules.problems import RuleFileError
from rules.settings import Settings
from rules.verdicts import LayerKind, Mode, TlsMode
from tests.rules import strategies as laws

pool = st.lists(laws.rules(), max_size=3)
kinds, kept, settings = st.sampled_from(LayerKind), st.sets(st.integers(0, 3)), st.sampled_from(Mode)
ADDRESSES = st.sampled_from(laws.ADDRESSES)


def numbered(rules, file):
    return [rule._replace(id=f"{file}:{number}") for number, rule in enumerate(rules)]


def layer(kind, rules):
    return Layer(kind, "root", tuple(rules), roots=True)


@laws.many
@given(pool, pool, pool, kept, kept, kinds, settings, laws.attempts, ADDRESSES)
def test_partial_layer_is_as_strict_as_the_whole(  # noqa: PLR0917 - what hypothesis draws
    others, before, now, shared, left, kind, mode, attempt, address
):
    """Of root's rules before some are left, and some are in a file that others include as well."""
    before = numbered(before, "before")
    now = [*numbered(now, "now"), *(rule for number, rule in enumerate(before) if number in left)]
    own = numbered(others, "own")
    both = [*own, *(rule for number, rule in enumerate(before) if number in shared)]
    given_settings = Settings(mode=mode)

    def together(roots):
        every = list(dict.fromkeys([*both, *roots]))
        return Policy(every, given_settings, layers=[layer(kind, roots)])

    alone = Policy(now, Settings(), layers=[layer(kind, now)])
    over, truth = put_over(together(before), alone, ["broken"]), together(now)
    assert rank_decision(over.decide(attempt)) <= rank_decision(truth.decide(attempt))
    if truth.check_address(attempt, address) is not None:
        assert over.check_address(attempt, address) is not None
    assert over.unread == ("broken",)
    again = put_over(truth, alone, [])
    assert rank_decision(again.decide(attempt)) == rank_decision(truth.decide(attempt)), (
        "what root's files say already changes nothing"
    )


ROOT = "version: 1\nname: root\n%s\nrules:\n  - {id: r, to: x.example, action: %s}\n"
OTHER = "version: 1\nname: web\nsettings: {idle_timeout: 1h, tls: splice}\nrules:\n  - {id: a, to: '**.example', action: allow}\n"


def written(tmp_path, root, other=""):
    files = {"root.yaml": root, "web.yaml": other}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return read([tmp_path / "web.yaml"] if other else [], mandatory=[tmp_path / "root.yaml"]).policy


def test_strictest_of_old_and_new_root_settings_apply(tmp_path):
    before = written(tmp_path, ROOT % ("settings: {on_journal_failure: block, idle_timeout: 2h}", "allow"), OTHER)
    now = written(tmp_path, ROOT % ("settings: {tls: inspect, idle_timeout: 1m}", "deny"))
    over = put_over(before, now, ["broken"])
    assert (over.settings.tls, over.settings.idle_timeout) == (TlsMode.INSPECT, 60.0)
    none = put_over(before, written(tmp_path, ROOT % ("", "deny")), [])
    assert (none.settings.tls, none.settings.idle_timeout) == (TlsMode.SPLICE, 600.0), "nobody says it any more"
    flagged = put_over(before, written(tmp_path, ROOT % ("", "flag")), [])
    assert flagged.rule_ids == ("web:a", "root:r"), "what votes and is not in the pool is counted by its id as well"
    assert {Path(path).name for path in over.sources} == {"root.yaml", "web.yaml"}


@pytest.mark.parametrize(("said", "spliced"), [("", False), ("settings: {tls: splice}", True)])
def test_no_other_file_fills_in_a_layers_defaults(tmp_path, said, spliced):
    """A file of one's own with `tls: splice` had root's rules spliced too."""
    policy = written(tmp_path, ROOT % (said, "allow"), OTHER)
    attempts = [laws.Attempt(laws.Protocol.TLS, laws.HostName(name), 443) for name in ("x.example", "y.example")]
    assert [policy.decide(attempt).inspect for attempt in attempts] == [not spliced, False]


PIP = "version: 1\nlocked:\n  pip:\n    index: [{url: 'https://%s'}]\n    files: [{url: 'https://%s'}]\n"


def test_only_roots_lock_resolves_roots_includes(tmp_path):
    """A user's own said which host root's ceiling lets everybody out to."""
    root, own, web = (tmp_path / name for name in ("root.lock", "own.lock", "web.yaml"))
    own.write_text(PIP % ("evil.example", "evil.example"))
    web.write_text("version: 1\nname: web\ninclude:\n  - preset: pip\n")
    files = {"mandatory": [tmp_path / "root.yaml"], "locks": [root, own]}
    files["mandatory"][0].write_text("version: 1\nname: root\nlayer: ceiling\ninclude:\n  - preset: pip\n")
    with pytest.raises(RuleFileError, match=r"own\.lock`, which root does not own: run `exeat presets lock pip` as"):
        read([web], **files)
    assert read([web], files["locks"]).policy.rules
    root.write_text(PIP % ("mirror.example", "mirror.example"))
    names = {name.text for rule in read([web], **files).policy.rules for name in rule.names}
    assert names == {"mirror.example"}
