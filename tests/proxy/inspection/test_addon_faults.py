"""Hooks that raise, starts that could not decide, and what would get past the addon."""

import asyncio
import os
import re
import shutil
import subprocess
import time

import certifi
import pytest
from mitmproxy.addons.mapremote import MapRemote
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.onboarding import Onboarding
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.addons.upstream_auth import UpstreamAuth
from mitmproxy.exceptions import OptionsError
from mitmproxy.hooks import all_hooks
from mitmproxy.test import taddons

from proxy import addon
from proxy.certificates.system_bundles import bundle_path
from proxy.inspection.standalone import StandaloneGate
from tests.proxy.inspection.addon_harness import ADDON, MITMDUMP, Dump
from tests.proxy.inspection.inspection_clients import wait_for

HOOKS = [
    "client_connected", "next_layer", "http_connect", "tls_clienthello", "server_connect", "server_connected",
    "requestheaders", "request", "responseheaders", "response",
]  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_a_hook_that_raises_ends_the_connection(dump, hook, tls):
    """mitmproxy would log it, and let the request pass."""
    if not tls and hook in ("http_connect", "tls_clienthello"):
        hook = "server_connected"  # there the request is sent at once
    origin = dump.tls if tls else dump.plain
    url = f"http{'s' if tls else ''}://good.example:{origin.port}/broken-{hook}"
    asked = [request.target for request in origin.requests]
    told = len(dump.events("gate.error"))
    dump.break_in(hook)
    status, out, _ = dump.curl("--http1.1", url, "-m", "5")
    if hook != "response":  # then it has been passed on already
        assert status != 0
        assert b"origin for" not in out
    wait_for(lambda: any(hook in event["fault"]["detail"] for event in dump.events("gate.error")[told:]))
    if hook not in ("request", "responseheaders", "response"):  # its head has left before
        assert [request.target for request in origin.requests] == asked
    dump.break_in("")
    assert dump.curl(url, "-o", os.devnull, "-w", "%{http_code}")[1] == b"200"


def test_every_hook_that_sees_traffic_is_guarded():
    from mitmproxy.addons import default_addons  # loads what defines hooks

    assert default_addons
    quiet = {
        # mitmproxy's own life
        "load", "configure", "running", "done", "update", "add_log",
        # what comes after one of ours has let it pass, and could be no more than looked at
        "http_connected", "http_connect_error", "server_connect_error", "server_disconnected",
        "tls_start_client", "tls_start_server", "tls_established_client", "tls_established_server",
        "tls_failed_client", "tls_failed_server",
        # what comes after one that is cut, or of a mode that is refused
        "tcp_message", "tcp_end", "tcp_error", "udp_message", "udp_end", "udp_error", "dns_response", "dns_error",
        "websocket_message", "websocket_end", "http_connect_upstream",
    }  # fmt: skip
    for name in set(all_hooks) - quiet:
        hook = getattr(addon.Exeat, name)
        assert hasattr(hook, "__wrapped__"), f"{name} is not guarded"


@pytest.mark.parametrize(("words", "said"), [([], "there are no rules"), (["--set", "exeat_rules=BAD"], "2:1")])
def test_a_start_that_could_not_decide_is_none(tmp_path, words, said):
    (tmp_path / "bad.yaml").write_text("version: 1\nnonsense: t\n")
    done = subprocess.run(
        [MITMDUMP, "-s", ADDON, "--set", f"confdir={tmp_path}", "--listen-host", "127.0.0.1", "-p", "0",
         *(word.replace("BAD", str(tmp_path / "bad.yaml")) for word in words)],
        capture_output=True, timeout=30, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 1
    assert said in (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"exeat_rules": ["/nonexistent.yaml"]}, "nonexistent"),
        ({"mode": ["socks5"]}, "not in `socks5`"),
        ({"mode": ["regular", "reverse:https://good.example@9999"]}, "not in `reverse:"),
        ({"ignore_hosts": ["x"]}, "remove `ignore_hosts`"),
        ({"tcp_hosts": ["x"]}, "remove `tcp_hosts`"),
        ({"ssl_insecure": True}, "remove `ssl_insecure`"),
        ({"connection_strategy": "eager"}, "needs `connection_strategy` to be `lazy`"),
        ({"rawtcp": True}, "needs `rawtcp` to be `False`"),
        ({"validate_inbound_headers": False}, "needs `validate_inbound_headers` to be `True`"),
    ],
    ids=str,
)
def test_options_that_would_let_something_past_are_refused(tmp_path, wanted, said):
    (tmp_path / "rules.yaml").write_text("version: 1\nname: t\nrules: []\n")

    async def run():
        with taddons.context(
            Proxyserver(), NextLayer(), TlsConfig(), Onboarding(), UpstreamAuth(), MapRemote()
        ) as made:
            made.options.update(confdir=str(tmp_path))
            exeat = addon.Exeat()
            made.master.addons.add(exeat)
            made.configure(exeat, exeat_rules=[str(tmp_path / "rules.yaml")])
            assert made.options.connection_strategy == "lazy"
            assert made.options.ssl_verify_upstream_trusted_ca == bundle_path()
            with pytest.raises(OptionsError, match=re.escape(said)):
                made.configure(exeat, **wanted)

    asyncio.run(run())


def test_rules_with_secrets_are_refused(tmp_path):
    """A placeholder would go out as it is, and nobody would say so."""
    file = tmp_path / "rules.yaml"
    file.write_text("version: 1\nsecrets: [{id: a, from: {env: A}, as: B, hosts: x.example, in: basic}]\n")
    with pytest.raises(OSError, match="rule files with `secrets` need `exeat run`"):
        StandaloneGate([file], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settings: {upstream_ca: ROOTS}", "rule files with `upstream_ca` need `exeat run`"),
        ("rules: [{id: a, to: x.example, action: allow, ca: ROOTS}]", "rule files with `ca` need `exeat run`"),
    ],
)
def test_certificates_that_mitmproxy_would_not_trust_are_refused(tmp_path, text, said):
    """mitmproxy verifies servers itself: every request would fail, and nothing would say why."""
    roots, file = tmp_path / "roots.pem", tmp_path / "rules.yaml"
    shutil.copy(certifi.where(), roots)
    file.write_text(f"version: 1\n{text.replace('ROOTS', str(roots))}\n")
    with pytest.raises(OSError, match=said):
        StandaloneGate([file], None)


def test_a_sandbox_and_commands_in_mitmproxy_are_warned_of(tmp_path, caplog):
    for text in ("sandbox: {timeout: 5m}", "commands: [{id: a, run: b, action: deny}]"):
        caplog.clear()
        (tmp_path / "rules.yaml").write_text(f"version: 1\n{text}\n")
        StandaloneGate([tmp_path / "rules.yaml"], None)
        assert "`sandbox` and `commands` of the rule files have no effect here" in caplog.text


def test_an_addon_that_is_taken_away_ends_mitmproxy(tmp_path, origins):
    """mitmproxy loads a script again that has changed, and would go on without one that it can't load."""
    made = Dump(tmp_path, origins)
    (tmp_path / "journal").mkdir()
    copy = tmp_path / "addon.py"
    copy.write_text(
        ADDON.read_text().replace("Path(__file__).resolve().parent.parent", f"Path({str(ADDON.parents[1])!r})")
    )
    process = subprocess.Popen(
        [MITMDUMP, "-q", "-s", copy, "--set", f"exeat_rules={made.rules}", "--set", f"confdir={tmp_path}",
         "--listen-host", "127.0.0.1", "-p", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
    )  # fmt: skip
    time.sleep(2.5)
    assert process.poll() is None
    copy.write_text("nonsense(")
    os.utime(copy, (time.time() + 5, time.time() + 5))
    assert process.wait(15) is not None
    process.stdout.close()
