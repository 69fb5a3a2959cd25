"""Hints for misplaced keys, and for keys as other tools name them.

No key has a second name: these hints are added to the problem, and the file stays refused.
"""

from collections.abc import Mapping
from typing import Final


def _meaning(**words: str) -> dict[str, str]:
    return {word: meaning for meaning, many in words.items() for word in many.split()}


_ACTIONS: Final = _meaning(
    allow="allow allows allowed permit whitelist allowlist",
    deny="deny denied block blocked drop blacklist blocklist denylist", ask="ask", flag="flag",
)  # fmt: skip
_IN_A_RULE: Final[Mapping[str, str]] = {
    **{word: f"`action: {meaning}`, and whatever it is about under `to`" for word, meaning in _ACTIONS.items()},
    **{
        word: f"`{meaning.strip('_')}`"
        for word, meaning in _meaning(
            id="name",
            to="host hosts hostname domain domains destination destinations target targets url urls ip ips cidr cidrs "
            "address addresses names",
            action="verdict effect decision policy permission",
            why="comment description desc reason message note",
            ports="port protocol protocols",
            until="expires expiry expire valid_until",
            except_="exclude excludes exclusions exceptions unless but",
            limits="limit rate rate_limit ratelimit quota",
            resolves_to="resolve resolves resolved_to",
        ).items()
    },
    "method": "`methods` under `http`",
    "path": "`paths` under `http`",
    "task": "`tasks` under `for`",
    "label": "`labels` under `for`",
}

_IN_A_FILE: Final[Mapping[str, str]] = {
    **{word: f"a rule with `action: {meaning}` under `rules`" for word, meaning in _ACTIONS.items()},
    **dict.fromkeys(("includes", "import", "imports", "extends", "presets", "preset"), "`include`"),
}
_RESOURCES: Final = _meaning(
    memory="mem ram", cpu="cpus cores cpu_quota", processes="pids threads nproc tasks", files="nofile fds",
    disk="storage tmpfs_size",
)  # fmt: skip
_IN_A_BOX: Final[Mapping[str, str]] = {
    **{word: f"`{meaning}` under `limits`" for word, meaning in _RESOURCES.items()},
    **{
        word: f"`{meaning}`"
        for word, meaning in _meaning(
            environment="env envs variables vars",
            limits="limit resources",
            read="ro readonly read_only mounts volumes binds",
            write="rw writable read_write",
            hide="hidden mask masked",
        ).items()
    },
}
_MEANT: Final[Mapping[str, Mapping[str, str]]] = {
    "a rule": _IN_A_RULE,
    "a rule file": _IN_A_FILE,
    "`sandbox`": _IN_A_BOX,
    "`limits` of a sandbox": {
        **{word: f"`{meaning}`" for word, meaning in _RESOURCES.items()},
        **dict.fromkeys(("timeout", "time_limit"), "`timeout` of `sandbox`, beside `limits`"),
    },
}


def misplaced_key(of: str, word: str, inside: Mapping[str, str]) -> str:
    """Return `; did you mean ...?` for a key with another name or in the wrong section, or an empty text.

    `inside`: where the keys of its own parts belong.
    """
    return _as_question({**inside, **_MEANT.get(of, {})}.get(_normalize(word)))


def similar_key(of: str, word: str, inside: Mapping[str, str]) -> str:
    """Return a hint for a key that is nearly one of these, or an empty text."""
    from difflib import get_close_matches

    known = {**inside, **_MEANT.get(of, {})}
    near = get_close_matches(_normalize(word)[:64], known, 1, 0.65)
    return _as_question(known[near[0]] if near else None)


def _normalize(word: str) -> str:
    return word.lower().replace("-", "_")


def _as_question(found: str | None) -> str:
    return f"; did you mean {found}?" if found else ""
