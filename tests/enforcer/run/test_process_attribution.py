"""Which process of a real task it was that a connection was opened by, in the events that tell of it."""

RULES = """
version: 1
name: web
rules:
  - {id: none, to: bad.example, action: deny}
"""
# The first connection of a task is the first that anybody looks for: on a busy machine that takes longer than a refusal
# waits, so it is one that nothing is expected of.
FIRST = 81
SCRIPT = """
curl -s --max-time 20 -o /dev/null http://bad.example:81/
curl -sk --max-time 20 -o /dev/null https://bad.example/
python3 -c 'import socket; s = socket.create_connection(("bad.example", 9)); s.recv(1)' 2>/dev/null
bash -c 'exec 3<>/dev/tcp/bad.example/80; echo hello >&3; read -r -u 3 line' 2>/dev/null
curl -s --max-time 20 -H 'Content-Type: application/json' -d 'SAID' http://exeat.internal:4318/v1/logs >/dev/null
true
"""

SAID = '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"hello"}}]}]}]}'


TRIES = (
    5  # on a busy machine a refusal waits for its process no longer than it may (`proxy.supervisor_channel.channel`)
)


def refused(someone, rules):
    """Run the script; return the decisions, and the processes behind each port and behind what was said."""
    before = len(someone.events())
    done = someone.exeat("run", "--quiet", "--rules", rules, "--", "bash", "-c", SCRIPT.replace("SAID", SAID))
    assert done.returncode == 0
    events = someone.events()[before:]
    told = [event for event in events if event["kind"] == "connection.decided"]
    (said,) = [event for event in events if event["kind"] == "agent.said"]
    found = {event["destination"]["port"]: event.get("process") for event in told}
    assert FIRST in found
    return told, {port: process for port, process in found.items() if port != FIRST}, said.get("process")


def test_each_denial_names_its_process(someone):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    for _ in range(TRIES):
        told, found, said = refused(someone, rules)
        if all((*found.values(), said)):
            break
    assert [event["outcome"] for event in told] == ["blocked"] * len(told)
    assert found[443]["exe"].endswith("/curl")
    assert found[443]["argv"][-1] == "https://bad.example/"
    assert "python" in found[9]["exe"]
    assert found[80]["exe"].endswith("/bash")
    assert said["exe"].endswith("/curl")
    for process in (*found.values(), said):
        assert process["ancestor_pids"] == [found[443]["ancestor_pids"][0]] * len(process["ancestors"])
        assert process["ancestors"][-1].endswith("/bash")
        assert process["pid"] > 1
