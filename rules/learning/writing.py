"""Writes drafts as a rule file, with what could not be written."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from json import dumps
from typing import Final

from rules.attempt import Protocol
from rules.learning.drafts import Draft, Evidence, LearnedRules, Omission, format_destination
from rules.learning.generalize import GitDraft, Learned, write_pattern
from rules.rule import Rule
from rules.settings import Settings, UpstreamExceptions
from rules.values.addresses import bracket_host
from rules.values.globs import ONE
from rules.values.paths import readings

_MOST_TASKS: Final = 5
_MOST_LEFT_OUT: Final = 50
_LONGEST_TEXT: Final = 120  # characters of what a sandbox made up
_SCHEMES: Final = {Protocol.TLS: ("https", 443), Protocol.HTTP: ("http", 80)}


def write_rule_file(
    drafted: LearnedRules,
    head: Iterable[str],
    name: str,
    masked: Callable[[str], str],
    settings: Mapping[str, str | list[str]] | None = None,
) -> str:
    """Write the whole rule file. `head`: sentences for its first lines; `masked` removes credentials from a text.

    `settings`: what stands under that key, as `enforce_settings` gives it.
    """
    lines = [comment(line) for line in head]
    lines += ["version: 1", f"name: {name}"]
    if settings:
        lines += ["settings:", *(f"  {key}: {_quoted(value)}" for key, value in settings.items())]
    lines += ["rules:" if drafted.drafts else "rules: []"]
    for draft in drafted.drafts:
        lines += ["", *_rule(draft, masked)]
    if drafted.drafts:
        lines += ["", "tests:", *(f"  - {_test(draft)}" for draft in drafted.drafts)]
    if drafted.left_out:
        lines += ["", *_describe_omissions(drafted.left_out, masked)]
    return "\n".join(lines) + "\n"


def enforce_settings(settings: Settings) -> dict[str, str | list[str]]:
    """Return the settings for a learned file: all that differ from the defaults, except the mode."""
    usual = Settings()
    written: dict[str, str | list[str]] = {}
    for key, value in settings._asdict().items():
        if key == "mode" or value == getattr(usual, key):
            continue
        if key == "idle_timeout":
            written[key] = f"{value:.0f}s"
        elif key == "upstream_except":
            written[key] = _format_exceptions(value)
        else:
            written[key] = str(value)
    return written


def _format_exceptions(past: UpstreamExceptions) -> list[str]:
    return [*(name.text for name in past.names), *map(str, past.networks)]


def _quoted(value: str | list[str]) -> str:
    """Write a value in quotes, in ASCII: YAML takes no surrogates, in which JSON spells what is beyond 16 bits."""
    return strip_unprintable(dumps(value, ensure_ascii=False))


def comment(text: str) -> str:
    """Return a comment: one line of printable ASCII for any text (YAML 1.2.2 section 6.6)."""
    return f"# {strip_unprintable(text)}"


def strip_unprintable(text: str) -> str:
    """Escape characters that aren't printable ASCII."""
    return "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    if " " <= character <= "~":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _rule(draft: Draft, masked: Callable[[str], str]) -> Iterator[str]:
    place = draft.place
    yield f"  {comment(_describe_evidence(draft.evidence, masked))}"
    for note in draft.notes:
        yield f"  {comment(note)}"
    wild = sum(part is ONE for path in draft.paths or () for part in path)
    if wild:
        yield f"  {comment('a `*` stands where three values or more were seen')}"
    yield f"  - id: {draft.id}"
    yield f"    to: {dumps(str(place.target))}"
    yield f'    ports: "{place.port}/{place.protocol.value}"'
    if draft.resolves_to:
        yield f"    resolves_to: {_list(map(str, draft.resolves_to))}"
    if draft.methods is not None:
        yield from _http(draft, draft.methods, draft.paths or ())
    if draft.git is not None:
        yield from _git(draft.git)
    if draft.splice:
        yield "    tls: splice"
    if draft.dns_types:
        yield f"    dns_types: {_list(draft.dns_types)}"
    yield f"    action: {draft.action.value}"
    yield f'    why: "learned: seen {_times(draft.evidence.times)}, last on {_day(draft.evidence.last)}"'


def _http(draft: Draft, methods: Iterable[str], paths: Sequence[Learned]) -> Iterator[str]:
    yield "    http:"
    yield f"      methods: {_list(methods)}"
    if paths:
        yield "      paths:"
        yield from (f"        - {dumps(write_pattern(path))}" for path in paths)
    if draft.body:
        yield "      body: true"
    if draft.websocket:
        yield "      websocket: true"


def _git(git: GitDraft) -> Iterator[str]:
    yield "    git:"
    yield f"      repos: {_list(git.repos)}"
    if git.change is None:
        yield "      fetch: true"
    else:
        yield f"      push: {_list(git.refs)}"
        yield f"      changes: [{git.change.value}]"


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(dumps, values))}]"


def _describe_evidence(evidence: Evidence, masked: Callable[[str], str]) -> str:
    first, last = _moment(evidence.first), _moment(evidence.last)
    when = first if first == last else f"{first} to {last}"
    names = [f"`{_short(masked(task))}`" for task in list(evidence.tasks)[:_MOST_TASKS] if task]
    more = len(evidence.tasks) - _MOST_TASKS
    by = f", by {', '.join(names)}{f' and {more} more' if more > 0 else ''}" if names else ""
    return f"seen {_times(evidence.times)}, {when}{by}"


def _describe_omissions(left_out: tuple[Omission, ...], masked: Callable[[str], str]) -> Iterator[str]:
    yield comment("Not learned:")
    for each in left_out[:_MOST_LEFT_OUT]:
        yield comment(f"  {_times(each.times)}: {_short(masked(each.what))}: {each.why}")
    if len(left_out) > _MOST_LEFT_OUT:
        yield comment(f"  and {len(left_out) - _MOST_LEFT_OUT} more")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."


def _test(draft: Draft) -> str:
    return f"{{attempt: {_quoted(_attempt(draft))}, expect: {draft.action.value}, rule: {draft.id}}}"


def _attempt(draft: Draft) -> str:
    """Write an attempt that a rule covers; any value does where it has a `*`."""
    if draft.git is not None:
        return _git_attempt(draft, draft.git)
    if not draft.methods or not draft.paths:
        return format_destination(draft.place)
    texts = [
        (write_pattern(tuple("x" if part is ONE else part for part in path)) or "/").replace("*", "%2A")
        for path in draft.paths
    ]
    # A path with two readings has both among the patterns: any of them allows it, and the plainest reads best.
    path = min(texts, key=lambda text: len(readings(text)))
    return f"{draft.methods[0]} {_origin(draft)}{path}"


def _git_attempt(draft: Draft, git: GitDraft) -> str:
    url = f"{_origin(draft)}/{git.repos[0]}"
    if git.change is None:
        return f"git fetch {url}"
    return f"git push {url} {git.example} {git.change.value}"


def _origin(draft: Draft) -> str:
    scheme, usual = _SCHEMES[draft.place.protocol]
    if draft.websocket:
        scheme = {"https": "wss", "http": "ws"}[scheme]
    port = "" if draft.place.port == usual else f":{draft.place.port}"
    return f"{scheme}://{bracket_host(draft.place.target)}{port}"


def _times(times: int) -> str:
    return "once" if times == 1 else f"{times} times"


def _moment(nanoseconds: int) -> str:
    return f"{datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC):%Y-%m-%d %H:%M}"


def _day(nanoseconds: int) -> str:
    return f"{datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC):%Y-%m-%d}"


_MOST_CITED: Final = 5
NOT_TAKEN_OVER: Final = "NOT TAKEN OVER"


def add_notes(drafted: LearnedRules, rules: Mapping[str, Rule]) -> tuple[LearnedRules, int]:
    """Add to each learned rule a note on the keys of the original rules that were not learned; count them.

    `rules`: that were in force, by their ids.
    """
    drafts = [draft._replace(notes=(*draft.notes, *_notes(draft, rules))) for draft in drafted.drafts]
    looser = sum(len(new.notes) > len(old.notes) for new, old in zip(drafts, drafted.drafts, strict=True))
    return drafted._replace(drafts=tuple(drafts)), looser


def _notes(draft: Draft, rules: Mapping[str, Rule]) -> Iterator[str]:
    is_set = ((cite, list_not_taken_over(rules[cite])) for cite in draft.evidence.allowed_by if cite in rules)
    found = [f"`{cite}`: {', '.join(keys)}" for cite, keys in is_set if keys]
    more = f"; and {len(found) - _MOST_CITED} more rules" if len(found) > _MOST_CITED else ""
    if found:
        yield f"{NOT_TAKEN_OVER} from {'; '.join(found[:_MOST_CITED])}{more}"


def list_not_taken_over(rule: Rule) -> tuple[str, ...]:
    """List the keys of a rule that narrow it, or change how it is carried out, and that learning can't derive."""
    http = rule.http
    is_set = {
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
    return tuple(key for key, is_said in is_set.items() if is_said)
