"""What is shipped for Prometheus and Grafana, held to the gate's metrics and tried with the real programs."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from proxy.telemetry.prometheus.metrics import Metrics
from tests.support import harness
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
PROMETHEUS, RUNBOOKS = ROOT / "containers" / "prometheus", ROOT / "docs" / "how-to" / "runbooks"
DASHBOARD = json.loads((ROOT / "containers" / "grafana" / "gate.json").read_text())
FILES = ("recording.yaml", "alerts.yaml", "alerts_unusual.yaml")
RULES = {name: yaml.safe_load((PROMETHEUS / name).read_text()) for name in FILES}
RECORDED = {rule["record"]: rule["expr"] for group in RULES["recording.yaml"]["groups"] for rule in group["rules"]}
ALERTS = {rule["alert"]: rule for name in FILES[1:] for group in RULES[name]["groups"] for rule in group["rules"]}
QUERIES = {
    f"{panel['title']}, {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}

TASK = """
(exec 3<>/dev/tcp/host.exeat.internal/PORT && echo hello >&3 && cat <&3)
for name in spliced.example denied.example; do curl -sk -m 20 -o /dev/null https://$name/; done
echo tried
read line
"""
RULE_FILE = """
version: 1
name: web
rules:
  - {id: here, to: host.exeat.internal, ports: [PORT/tcp], limits: {connections: 5}, action: allow}
  - {id: out, to: spliced.example, tls: splice, action: allow}
  - {id: never, to: denied.example, action: deny}
"""


def promtool(*words):
    tool = shutil.which("promtool") or harness.missing("promtool")
    return subprocess.run([tool, *words], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=60)


def test_prometheus_accepts_configuration_and_rules():
    done = promtool("check", "config", "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_exactly_when_it_should():
    files = sorted(path.name for path in PROMETHEUS.glob("*_test.yaml"))
    done = promtool("test", "rules", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [test["name"] for file in files for test in yaml.safe_load((PROMETHEUS / file).read_text())["tests"]]
    assert sorted(names) == sorted(f"{alert} {what}" for alert in ALERTS for what in ("fires", "does not fire"))


def test_alert_links_to_the_configured_runbook(tmp_path):
    """A path that is relative to nothing helps nobody who is woken by it."""
    test = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())
    test["rule_files"] = [str(PROMETHEUS / name) for name in test["rule_files"]]
    one = next(each for each in test["tests"] if each["name"] == "ExeatDown fires")
    one["external_labels"] = {"exeat_docs": "https://git.corp.example/exeat/docs"}
    said = [alert for when in one["alert_rule_test"] for alert in when["exp_alerts"]]
    for alert in said:
        alert["exp_annotations"]["runbook"] = "https://git.corp.example/exeat/docs/how-to/runbooks/ExeatDown.md"
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**test, "tests": [one]}))
    done = promtool("test", "rules", tmp_path / "one.yaml")
    assert said
    assert done.returncode == 0, done.stdout + done.stderr
    start = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    assert "://" in start["global"]["external_labels"]["exeat_docs"]


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_severity_and_remedy(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert (
        rule["annotations"]["runbook"] == f'{{{{ or $externalLabels.exeat_docs "docs" }}}}/how-to/runbooks/{alert}.md'
    )
    page = RUNBOOKS / f"{alert}.md"
    text = page.read_text()
    assert re.findall("^#+ .*$", text, re.MULTILINE) == [f"# {alert}", "## What it means", "## Look", "## Do"]
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_every_runbook_has_an_alert():
    assert {page.stem for page in RUNBOOKS.iterdir()} == set(ALERTS)


EXPRESSIONS = {**RECORDED, **{name: rule["expr"] for name, rule in ALERTS.items()}, **QUERIES}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_queries_use_existing_metrics(expression):
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("reference/metrics.md", "reference/exporters.md"))
    documented = set(re.findall(r"^\| `(\w+)", pages, re.MULTILINE))
    for name in re.findall(r"\b(?:exeat|process)_\w+", expression):
        assert name in documented or re.sub("_(bucket|sum|count)$", "", name) in documented
    assert set(re.findall(r"\bexeat:\w+(?::\w+)*", expression)) <= RECORDED.keys()


def test_metrics_of_alerts_exist_before_they_fire():
    """`increase` sees nothing in a series that begins with its first time."""
    fresh = Metrics().render().decode()
    for rule in ALERTS.values():
        for name, label in re.findall(r"increase\((\w+)(?:\{(\w+=\"[^\"]+\")\})?\[", rule["expr"]):
            assert re.search(rf"^{name}\b[^\n]*{re.escape(label)}", fresh, re.MULTILINE), name


def test_dashboard_has_a_stable_id():
    assert DASHBOARD["uid"] == "exeat-gate"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


# --- a real Prometheus on a running gate ---


@contextlib.contextmanager
def ended(process):
    with process:
        try:
            yield process
        finally:
            process.terminate()


def result(port, query):
    """What Prometheus answers to an instant query."""
    asked = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{asked}", timeout=20) as answer:
        said = json.load(answer)
    assert said["status"] == "success"
    return said["data"]["result"]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """The port of one that has scraped a gate with a task behind it some times."""
    harness.needs_root()
    program = shutil.which("prometheus") or harness.missing("prometheus")
    place = tmp_path_factory.mktemp("prometheus")
    (place / "work").mkdir()
    gate, port = free_port(), free_port()
    settings = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    settings["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    settings["rule_files"] = [str(PROMETHEUS / name) for name in settings["rule_files"]]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{gate}"]}]
    (place / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    watcher = [program, f"--config.file={place}/prometheus.yaml", f"--storage.tsdb.path={place}/data"]
    watcher += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    watcher += ["--scrape.discovery-reload-interval=100ms"]  # 5 seconds, in which it would scrape nothing
    with socket.create_server(("127.0.0.1", 0)) as origin, task(place, gate, origin) as running:
        with origin.accept()[0] as connection:
            connection.recv(100)
        assert running.stdout.readline() == b"tried\n"
        with ended(subprocess.Popen(watcher)):
            _until_scraped(port)
            yield port


@contextlib.contextmanager
def task(place, gate, origin):
    """A task that has tried this and that, and whose gate is scraped at a port."""
    origin.settimeout(60)
    at = str(origin.getsockname()[1])
    (place / "web.yaml").write_text(RULE_FILE.replace("PORT", at))
    words = [Path(sys.executable).with_name("exeat"), "run", "--quiet", "--rules", place / "web.yaml"]
    words += ["--workspace", place / "work", "--journal", place / "journal", "--metrics", f"127.0.0.1:{gate}"]
    words += ["--", "bash", "-c", TASK.replace("PORT", at)]
    with subprocess.Popen([*map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.stdin.close()


def _until_scraped(port, times=3):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            found = result(port, 'count_over_time(exeat_build_info{job="exeat"}[1m])')
            if found and int(found[0]["value"][1]) >= times:
                return
        time.sleep(0.2)
    raise AssertionError("Prometheus has scraped nothing")


def plain(query):
    """A query as Grafana sends it."""
    filled = {"$instance": ".*", "$__rate_interval": "1m", "$__range": "1m"}
    return re.sub("|".join(map(re.escape, filled)), lambda found: filled[found[0]], query)


@pytest.mark.parametrize("title", QUERIES)
def test_dashboard_queries_return_data(prometheus, title):
    found = result(prometheus, plain(QUERIES[title]))
    assert found


def test_rules_are_evaluated_without_errors(prometheus):
    with urllib.request.urlopen(f"http://127.0.0.1:{prometheus}/api/v1/rules", timeout=20) as answer:
        groups = json.load(answer)["data"]["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert found.keys() == RECORDED.keys() | ALERTS.keys()
    assert [rule["lastError"] for rule in found.values() if rule.get("lastError")] == []
    assert {name for name, rule in found.items() if rule.get("state") == "firing"} == set()
