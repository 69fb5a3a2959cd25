"""The keys of the rule language. Readers accept these, `exeat schema` prints them, and hints name them."""

from typing import Final

# a rule file
FILE_KEYS: Final = (
    "version",
    "name",
    "layer",
    "include",
    "settings",
    "secrets",
    "sandbox",
    "commands",
    "rules",
    "tests",
)
SETTINGS_KEYS: Final = (
    "mode", "tls", "dns", "dns_pool", "on_block", "on_journal_failure", "idle_timeout",
    "upstream", "upstream_auth", "upstream_except", "upstream_ca",
)  # fmt: skip
TEST_KEYS: Final = ("attempt", "expect", "rule", "task", "labels", "at", "headers", "body", "credential", "tainted")

# a rule
RULE_KEYS: Final = (
    "id", "to", "ports", "resolves_to", "for", "http", "git", "credential", "when", "action", "why", "default",
    "except", "mode", "tls", "ca", "dns_types", "idle_timeout", "until", "limits", "approval", "trust", "scan", "log",
)  # fmt: skip
EXCEPT_KEYS: Final = ("to", "ports", "resolves_to", "for", "http", "git", "credential", "when")

# `http` and `git`
HTTP_KEYS: Final = ("methods", "paths", "query", "headers", "body", "max_url", "websocket")
GIT_KEYS: Final = ("repos", "fetch", "push", "changes")

# what rules, sandboxes and commands share
FOR_KEYS: Final = ("tasks", "labels")
LIMITS_KEYS: Final = ("connections", "requests", "bytes_up", "bytes_down", "window", "per")
APPROVAL_KEYS: Final = ("by", "count", "self", "hold", "open", "covers", "for")
MERGE_KEYS: Final = ("by", "count", "self", "hold", "open")

# an include
INCLUDE_KEYS: Final = ("file", "preset", "only", "except", "credential")

# `sandbox`
SANDBOX_KEYS: Final = (
    "read", "write", "hide", "workspace", "protected", "approval", "caches", "devices", "environment", "user",
    "hostname", "timeout", "limits",
)  # fmt: skip
ENVIRONMENT_KEYS: Final = ("keep", "set")
RESOURCE_KEYS: Final = ("memory", "cpu", "processes", "files", "disk")

# a command
COMMAND_KEYS: Final = ("id", "run", "action", "why", "for", "approval")

# a secret
SECRET_KEYS: Final = ("id", "from", "as", "hosts", "in", "prefix", "not_sent_to")
FROM_KEYS: Final = ("env", "file", "command", "systemd", "keyring")
IN_KEYS: Final = ("header", "query", "form")
