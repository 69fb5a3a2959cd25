"""A line a command that shows how it is mostly called: it ends its help, and what is said when words are missing."""

EXAMPLES = {
    "run": "exeat run --rules web.yaml -- make test",
    "shell": "exeat shell --rules web.yaml",
    "up": "exeat up",
    "ps": "exeat ps",
    "status": "exeat status",
    "stop": "exeat stop make",
    "attach": "exeat attach --rules web.yaml 4242",
    "detach": "exeat detach 4242",
    "changes": "exeat changes accept fix-tests src/main.py",
    "approvals": "exeat approvals show 7f3k",
    "approve": "exeat approve 7f3k --for 1h --why 'reviewed with bo'",
    "reject": "exeat reject 7f3k --why 'ask again after the release'",
    "flagged": "exeat flagged ack --all --task make",
    "check": "exeat check web.yaml",
    "explain": "exeat explain --rules web.yaml 'POST https://api.github.com/repos/acme/web'",
    "test": "exeat test web.yaml",
    "presets": "exeat presets show pip",
    "diff": "exeat diff old.yaml new.yaml",
    "schema": "exeat schema > exeat.schema.json",
    "replay": "exeat replay --rules new.yaml --since 1d",
    "learn": "exeat learn --task make -o web.yaml",
    "log": "exeat log --verdict deny --since 1h",
    "top": "exeat top",
    "report": "exeat report --last",
    "export": "exeat export --to syslog+tls://siem.example --format cef",
    "ca": "exeat ca export ca.pem",
    "doctor": "exeat doctor",
}


def example(prog: str) -> str:
    """Return the line for `exeat COMMAND`."""
    return EXAMPLES[prog.removeprefix("exeat ")]
