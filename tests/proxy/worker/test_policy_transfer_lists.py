"""Lists of names on their way to the worker: each goes once, however many rules name it, and decides as before."""

import io
import threading
from pathlib import Path

from proxy.worker import policy_transfer
from rules.loading.cases import parse_attempt
from rules.loading.load import read
from tests.rules.rule_texts import told

RULES = """
version: 1
name: t
rules:
  - {id: open, to: "*", action: allow}
  - {id: ads, to: {list: ads.txt}, action: deny}
  - {id: new, to: {list: ads.txt}, ports: 443, action: ask}
"""
ATTEMPTS = {
    "ads7.example:443": "deny rule t:ads",
    "x.ads4999.example:443": "deny rule t:ads",
    "www.example:443": "allow rule t:open",
}


def written(directory: Path) -> Path:
    (directory / "ads.txt").write_text("\n".join(f"0.0.0.0 ads{n}.example" for n in range(5000)))
    (directory / "t.yaml").write_text(RULES)
    return directory / "t.yaml"


def test_list_is_transferred_once_and_decides_the_same(tmp_path):
    policy = read([written(tmp_path)]).policy
    file = io.BytesIO()
    policy_transfer.send(policy, file)
    assert len(file.getvalue()) < 1.5 * sum(map(len, policy.rules[0].feeds[0].names))

    file.seek(0)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(policy_transfer.receive(file)))
    thread.start()
    thread.join(30)
    (found,) = taken
    assert {text: told(parse_attempt(text).decide(found)) for text in ATTEMPTS} == ATTEMPTS
    assert found.revision == policy.revision
    assert len({id(feed) for rule in found.rules for feed in rule.feeds} | {id(f) for f in found._index._feeds}) == 1
