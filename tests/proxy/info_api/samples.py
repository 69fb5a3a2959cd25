"""What agents say of themselves, a sample of each family of events, after the agents' own documentation.

Codex: its configuration reference, "otel"; Claude Code: its monitoring page; the rest: the GenAI semantic conventions.
"""


def pairs(said):
    return [{"key": key, "value": value(each)} for key, each in said.items()]


def value(said):
    kinds = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}
    return {kinds[type(said)]: str(said) if type(said) is int else said}


def codex(name, **more):
    """A log record of Codex."""
    said = {
        "event.name": f"codex.{name}", "conversation.id": "0199-c0de", "app.version": "0.50.0", "model": "gpt-5-codex",
        "slug": "gpt-5-codex", "terminal.type": "xterm", **more,
    }  # fmt: skip
    return {"timeUnixNano": "1795000000000000000", "severityText": "INFO", "attributes": pairs(said)}


def claude(name, **more):
    """A log record of Claude Code."""
    said = {
        "event.name": name, "session.id": "11111111-2222", "organization.id": "org", "user.account_uuid": "u",
        "event.timestamp": "2026-11-18T12:00:00.000Z", "event.sequence": 3, "prompt.id": "p-1", **more,
    }  # fmt: skip
    return {
        "timeUnixNano": "1795000000000000001",
        "body": {"stringValue": f"claude_code.{name}"},
        "eventName": f"claude_code.{name}",
        "attributes": pairs(said),
    }


CODEX = {
    "conversation_starts": codex("conversation_starts", provider_name="openai", sandbox_policy="workspace-write"),
    "api_request": codex("api_request", duration_ms=120, attempt=0),
    "sse_event": codex("sse_event", **{"event.kind": "response.completed", "input_token_count": 5}),
    "user_prompt": codex("user_prompt", prompt_length=12, prompt="[REDACTED]"),
    "tool_decision": codex("tool_decision", tool_name="shell", call_id="call_7", decision="approved", source="config"),
    "tool_result": codex("tool_result", tool_name="shell", call_id="call_7", duration_ms=10, success="true"),
}
CLAUDE = {
    "user_prompt": claude("user_prompt", prompt_length=12),
    "api_request": claude("api_request", model="claude", cost_usd=0.01, input_tokens=5),
    "api_error": claude("api_error", error="overloaded", status_code="529"),
    "tool_decision": claude("tool_decision", tool_name="Bash", decision="accept", source="config"),
    "tool_result": claude("tool_result", tool_name="Bash", success="true", duration_ms=7, tool_use_id="toolu_1"),
}


def logs(*records, service="codex_cli_rs"):
    """An ExportLogsServiceRequest as JSON has it."""
    resource = {"attributes": pairs({"service.name": service})}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": list(records)}]}]}


SPAN = {
    "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "name": "execute_tool shell", "kind": 1,
    "startTimeUnixNano": "1795000000000000000", "endTimeUnixNano": "1795000000250000000",
    "attributes": pairs({"gen_ai.conversation.id": "conv_1", "gen_ai.tool.name": "shell", "gen_ai.tool.call.id": "call_9"}),
}  # fmt: skip
SPANS = {
    "resourceSpans": [{"resource": {"attributes": pairs({"service.name": "agent"})}, "scopeSpans": [{"spans": [SPAN]}]}]
}
