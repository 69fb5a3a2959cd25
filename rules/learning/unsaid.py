"""What rules say that those learned of what they let out don't: without it, the learned ones let out more."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rules.learning.drafts import Draft, Drafted
    from rules.rule import Rule

_MOST_CITED: Final = 5
NOT_TAKEN_OVER: Final = "NOT TAKEN OVER"


def noted(drafted: "Drafted", rules: "Mapping[str, Rule]") -> "tuple[Drafted, int]":
    """Note on each learned rule what those that let its requests out said besides; beside it, on how many.

    `rules`: that were in force, by their ids.
    """
    drafts = [draft._replace(notes=(*draft.notes, *_notes(draft, rules))) for draft in drafted.drafts]
    looser = sum(len(new.notes) > len(old.notes) for new, old in zip(drafts, drafted.drafts, strict=True))
    return drafted._replace(drafts=tuple(drafts)), looser


def _notes(draft: "Draft", rules: "Mapping[str, Rule]") -> "Iterator[str]":
    said = ((cite, unsaid(rules[cite])) for cite in draft.evidence.let_out_by if cite in rules)
    found = [f"`{cite}`: {', '.join(keys)}" for cite, keys in said if keys]
    more = f"; and {len(found) - _MOST_CITED} more rules" if len(found) > _MOST_CITED else ""
    if found:
        yield f"{NOT_TAKEN_OVER} from {'; '.join(found[:_MOST_CITED])}{more}"


def unsaid(rule: "Rule") -> tuple[str, ...]:
    """Return the keys of a rule that narrow it, or what is done with what it lets out, and that nobody can learn."""
    http = rule.http
    said = {
        "for": rule.selector is not None,
        "http.query": http is not None and bool(http.query),
        "http.headers": http is not None and bool(http.headers),
        "http.max_url": http is not None and http.max_url is not None,
        "credential": rule.credential is not None,
        "when": rule.when_tainted,
        "except": bool(rule.excepts),
        "until": rule.until is not None,
        "limits": rule.limits is not None,
        "scan": rule.scan is not None,
        "trust": rule.trust is not None,
        "log": rule.log is not None,
        "ca": rule.ca is not None,
        "idle_timeout": rule.idle_timeout is not None,
    }
    return tuple(key for key, is_said in said.items() if is_said)
