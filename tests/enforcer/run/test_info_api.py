"""The desk from inside a real sandbox, with a real client: also under the strictest rules, and for its own task alone."""

import json

RULES = """
version: 1
name: strict
rules:
  - {id: read, to: good.example, http: {methods: [GET], paths: ["/a/**"]}, action: allow, why: pages}
  - {id: none, to: "*", action: deny}
"""
SAID = '{"resourceLogs": [{"scopeLogs": [{"logRecords": [{"eventName": "codex.tool_result"}]}]}]}'
SCRIPT = """
curl -sS --max-time 20 http://exeat.internal/policy?format=json; echo
curl -sS --max-time 20 -o /dev/null http://evil.example/x
curl -sS --max-time 20 http://exeat.internal/why
curl -sS --max-time 20 -o /dev/null -w '%{http_code}\\n' -H 'Host: good.example' http://exeat.internal/policy
curl -sS --max-time 20 -o /dev/null -w '%{http_code}\\n' -H 'Content-Type: application/json' -d "$SAID" $OTEL_EXPORTER_OTLP_ENDPOINT/v1/logs
spaces=$(head -c 7000 /dev/zero | tr '\\0' ' ')
curl -sS --max-time 60 -o /dev/null -w 'long %{http_code}\\n' -H "A: a${spaces}b" http://exeat.internal/policy
curl -sS --max-time 60 -o /dev/null -w 'odd %{http_code}\\n' -H "A: a${spaces}b$(printf '\\001')" http://exeat.internal/policy
curl -sS --max-time 60 -o /dev/null -w 'page %{http_code}\\n' -H "Host: a${spaces}b" http://good.example/a/
curl -sS --max-time 5 http://exeat.internal:8080/ 2>&1 | tail -1
"""


def test_task_reads_its_rules_and_its_refusals(someone):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    done = someone.exeat(
        "run", "--quiet", "--rules", rules, "--task", "reader", "--env", f"SAID={SAID}", "--", "sh", "-c", SCRIPT
    )
    policy, end = json.JSONDecoder().raw_decode(done.stdout.decode())
    assert policy["task"] == "reader"
    assert [rule["id"] for rule in policy["rules"]] == ["strict:read", "strict:none"]
    said = done.stdout.decode()[end:]
    assert "connect http evil.example:80\n  was refused by strict:none: a rule denies this (rule)" in said
    assert "\n421\n" in said
    assert "\nlong 200\nodd 400\npage 403\n" in said  # nor does a head full of spaces keep the gate reading
    [agent] = [event for event in someone.events() if event["kind"] == "agent.said"]
    assert (agent["agent"], agent["task"]["name"]) == ({"source": "log", "name": "codex.tool_result"}, "reader")
    told = [event for event in someone.events() if event["kind"].endswith("decided")]
    assert "exeat.internal" not in {event["destination"].get("name") for event in told if event["outcome"] == "passed"}
    assert not [
        event for event in told if event["kind"] == "dns.decided" and event["dns"]["question"] == "exeat.internal"
    ]
