"""mitmproxy addon that decides as the gate does: `mitmdump -s proxy/addon.py --set exeat_rules=FILE`.

For mitmproxy's regular and transparent modes; Exeat itself doesn't load this file, it drives mitmproxy's layers with
`proxy.inspection`. Every request is decided at its head. mitmproxy connects here, so the addon resolves each name,
checks its addresses, and allows connections only to those (invariants 3 and 9). Other protocols are cut.

mitmproxy only logs an exception of a hook, and continues. So every hook is guarded: an exception ends the connection
(invariant 2). Unloading the addon ends mitmproxy, so that no traffic passes without a decision.
"""

import asyncio
import contextlib
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

if __name__ != "proxy.addon":  # mitmproxy puts this folder on the path, not its parent
    _folder = Path(__file__).resolve().parent
    # Our modules must not hide those of the standard library, such as `secrets`
    sys.path[:] = [*(each for each in sys.path if Path(each).resolve() != _folder), str(_folder.parent)]

from mitmproxy import connection, ctx, exceptions, flow, http
from mitmproxy import tls as mitmtls
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy import commands, events, layer, layers, mode_specs
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from proxy.certificates.system_bundles import bundle_path
from proxy.gate.block_page import Refusal, page, page_head
from proxy.inspection.standalone import ClientConnection, StandaloneGate, kill, streaming, too_long_to_refuse
from proxy.request.messages import checked_length
from proxy.request.mitmproxy_messages import head_of, response_head_of, response_of
from proxy.request.request_head import HTTP_PORT, UnclearError, named, read_authority
from proxy.telemetry.events import Component, Tls
from rules.problems import RuleFileError
from rules.values.addresses import parse_host
from rules.values.names import HostName, InvalidNameError
from rules.verdicts import Outcome, Reason

MODES: Final = (mode_specs.RegularMode, mode_specs.TransparentMode)
READABLE: Final = (
    modes.HttpProxy, modes.TransparentProxy, layers.ServerTLSLayer, layers.ClientTLSLayer, layers.HttpLayer,
)  # fmt: skip
# Options that could let traffic bypass the decision, and their required values
FORCED: Final[dict[str, Any]] = {
    "connection_strategy": "lazy",
    "validate_inbound_headers": True,
    "rawtcp": False,
    "websocket": False,
    "http3": False,
    "onboarding": False,
    "store_streamed_bodies": False,
}
REFUSED: Final = (
    "ignore_hosts",
    "allow_hosts",
    "tcp_hosts",
    "udp_hosts",
    "ssl_insecure",
    "upstream_auth",
    "map_remote",
)


class Closed(layer.Layer):
    """Layer that closes: neither TLS nor HTTP, or TLS in TLS."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)


def guarded(hook: Callable[["Exeat", Any], Any]) -> Callable[["Exeat", Any], Any]:
    """End the connection if a hook raises, which mitmproxy would only log."""

    @functools.wraps(hook)
    def guard(addon: "Exeat", subject: Any) -> Any:
        try:
            pending = hook(addon, subject)
        except Exception as error:  # noqa: BLE001  whatever it is
            addon.cut(subject, hook.__name__, error)
            return None
        return wait(addon, subject, pending) if inspect.isawaitable(pending) else None

    async def wait(addon: "Exeat", subject: Any, pending: Awaitable[None]) -> None:
        try:
            await pending
        except Exception as error:  # noqa: BLE001
            addon.cut(subject, hook.__name__, error)

    return guard


class Exeat:
    """The addon."""

    def __init__(self) -> None:
        self.gate: StandaloneGate | None = None
        self.clients: dict[str, ClientConnection] = {}

    # --- mitmproxy's life ---

    def load(self, loader: Loader) -> None:
        """Declare the addon's options, and set mitmproxy's options that it needs."""
        loader.add_option("exeat_rules", Sequence[str], [], "The rule files that decide.")
        loader.add_option("exeat_journal", str, "", "Directory of the journal; without it, events are only logged.")
        options = loader.master.options
        if not options.ssl_verify_upstream_trusted_ca and not options.ssl_verify_upstream_trusted_confdir:
            options.update(ssl_verify_upstream_trusted_ca=bundle_path())
        options.update(**FORCED)

    def configure(self, updated: set[str]) -> None:
        """Put rules in force. Raises OptionsError: mitmproxy then keeps the previous options, or doesn't start."""
        for name in REFUSED:
            if getattr(ctx.options, name, None):
                raise wrong(f"remove `{name}`: with it, traffic could bypass exeat")
        for name, value in FORCED.items():
            if name in updated and getattr(ctx.options, name) != value:
                raise wrong(f"exeat needs `{name}` to be `{value}`")
        for spec in ctx.options.mode:
            if not isinstance(mode_specs.ProxyMode.parse(spec), MODES):
                raise wrong(f"exeat works in regular and transparent mode, not in `{spec}`")
        if not {"exeat_rules", "exeat_journal"}.isdisjoint(updated):
            if not ctx.options.exeat_rules:
                raise wrong("there are no rules: add `--set exeat_rules=FILE`")
            journal = ctx.options.exeat_journal
            try:
                self.gate = StandaloneGate(
                    [Path(name) for name in ctx.options.exeat_rules], Path(journal) if journal else None
                )
            except (RuleFileError, OSError) as error:
                raise wrong(str(error)) from error

    def done(self) -> None:
        """End mitmproxy with the addon, also when its file changes, as no request may pass without it."""
        master: Any = ctx.master
        master.shutdown()

    # --- connections ---

    @guarded
    def client_connected(self, client: connection.Client) -> None:
        """Accept a client in a supported mode."""
        if self.gate is None or not isinstance(client.proxy_mode, MODES) or client.transport_protocol != "tcp":
            client.error = "exeat serves only TCP connections in regular and transparent mode"
            return
        self.clients[client.id] = ClientConnection(self.gate, functools.partial(self.sever, client))
        self.connection_of(client)

    @guarded
    def client_disconnected(self, client: connection.Client) -> None:
        """Record the connection's end."""
        self.connection_of(client).leave()
        del self.clients[client.id]

    @guarded
    def next_layer(self, found: layer.NextLayer) -> None:
        """Let mitmproxy detect the protocol, and close everything but HTTP, in at most one TLS layer."""
        self.connection_of(found.context.client)
        mitmproxy_s: Any = ctx.master.addons
        mitmproxy_s.get("nextlayer").next_layer(found)
        if found.layer is None:
            return  # until mitmproxy has received more data
        encrypted = [each for each in found.context.layers if isinstance(each, layers.ClientTLSLayer)]
        if len(encrypted) > 1 or not all(isinstance(each, READABLE) for each in stack(found.layer)):
            found.layer = Closed(found.context)

    @guarded
    def http_connect(self, http_flow: http.HTTPFlow) -> None:
        """Decide on a CONNECT tunnel; requests in it are decided again."""
        client, request = self.connection_of(http_flow.client_conn), http_flow.request
        assert self.gate
        attempt = f"tcp {request.host}:{request.port}"
        try:
            decision = client.enter(request.host, request.port)
        except InvalidNameError:
            decision = self.gate.refuse(Reason.INVALID_NAME, None, request.port)
        if not decision.passes:
            refused = page(Refusal(decision, attempt, event=client.cause, has_info_api=False))
            http_flow.response = response_of(page_head(refused), refused.body)

    @guarded
    def tls_clienthello(self, data: mitmtls.ClientHelloData) -> None:
        """Decide on TLS in transparent mode; in a tunnel, require the tunnel's host as SNI."""
        context, hello = data.context, data.client_hello
        client = self.connection_of(context.client)
        assert self.gate
        alpn = tuple(offer.decode("ascii", "replace") for offer in hello.alpn_protocols)
        tls = Tls(sni=hello.sni, alpn=alpn)
        if client.tunnel is not None:
            target, port = client.tunnel
            if isinstance(target, HostName) and hello.sni is None:
                self.refuse(context.client, Reason.SNI_MISSING, target, port, tls)
            elif hello.sni is not None and parse_host(hello.sni) != target:
                self.refuse(context.client, Reason.NAME_MISMATCH, target, port, tls)
        elif isinstance(context.client.proxy_mode, mode_specs.TransparentMode):
            assert context.server.address
            address, port = context.server.address[:2]
            if not client.enter(hello.sni or address, port, tls).passes:
                self.sever(context.client)

    @guarded
    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Allow only a checked address, and require the checked name of its certificate."""
        address = data.server.address
        destination = self.connection_of(data.client).leads_to(address) if address and not data.server.via else None
        if destination is None:
            data.server.error = "exeat allowed no request to this server"
            return
        data.server.sni = str(destination.target)

    @guarded
    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Check that the connection leads to that address."""
        self.connection_of(data.client)
        if not data.server.peername or not data.server.address or data.server.peername[0] != data.server.address[0]:
            raise RuntimeError("mitmproxy connected to another address")

    # --- requests ---

    @guarded
    def requestheaders(self, http_flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Decide on a request."""
        client, data = self.connection_of(http_flow.client_conn), http_flow.request.data
        host, port, tls = data.host, data.port, data.scheme == b"https"
        if client.tunnel is not None:
            tls = http_flow.client_conn.tls_established
        elif isinstance(http_flow.client_conn.proxy_mode, mode_specs.TransparentMode):
            with contextlib.suppress(UnclearError):  # the decision will give the reason
                host = str(read_authority(named(head_of(http_flow.request)), HTTP_PORT)[0])
        pending = client.ask(http_flow, host, port, tls=tls)
        if pending is None:
            too_long_to_refuse(http_flow)
            return None
        return self._await_decision(http_flow, pending)

    async def _await_decision(self, http_flow: http.HTTPFlow, pending: Awaitable[None]) -> None:
        """Wait for the decision."""
        await pending
        too_long_to_refuse(http_flow)

    @guarded
    def request(self, http_flow: http.HTTPFlow) -> None:
        """Remove trailers, which were neither counted, scanned nor decided on."""
        self.connection_of(http_flow.client_conn)
        http_flow.request.trailers = None

    @guarded
    def responseheaders(self, http_flow: http.HTTPFlow) -> None:
        """Stream the response, and allow no switch of protocols."""
        found = self.connection_of(http_flow.client_conn).request(http_flow)
        assert http_flow.response
        if http_flow.response.status_code == 101:
            raise RuntimeError("the server switches to a protocol that the request didn't offer")
        if found is not None and found[1].is_open:
            request, head = found[1], response_head_of(http_flow.response)
            request.note_response(head.status, checked_length(http_flow.request.data.method, head))
            http_flow.response.stream = streaming(request.may_receive, functools.partial(kill, http_flow))

    @guarded
    def response(self, http_flow: http.HTTPFlow) -> None:
        """Record the request's end."""
        found = self.connection_of(http_flow.client_conn).finish(http_flow)
        if found is not None and http_flow.response:
            session, request = found
            session.complete(request, http_flow.response.status_code)

    @guarded
    def error(self, http_flow: http.HTTPFlow) -> None:
        """Record why a request broke off: its client disconnected, or its server failed."""
        found = self.connection_of(http_flow.client_conn).finish(http_flow)
        if found is None:
            return
        session, request = found
        if not http_flow.client_conn.state & connection.ConnectionState.CAN_READ:
            session.complete_for_leaving_client(request)
        else:
            untrusted = "Certificate verify failed" in str(http_flow.error)
            reason = Reason.UPSTREAM_UNTRUSTED if untrusted else Reason.UPSTREAM_FAILED
            session.complete(request, None, Outcome.FAILED, reason)

    @guarded
    def never(self, subject: Any) -> None:
        """Raise for protocols that aren't HTTP."""
        raise RuntimeError(f"{type(subject).__name__} is not HTTP")

    tcp_start = udp_start = dns_request = websocket_start = quic_start_client = quic_start_server = socks5_auth = never

    # --- shared by the hooks ---

    def connection_of(self, client: connection.Client) -> ClientConnection:
        """Return the connection of a client. Raises KeyError if the addon didn't see it open."""
        return self.clients[client.id]

    def refuse(self, client: connection.Client, reason: Reason, target: Any, port: int, tls: Tls) -> None:
        """Record a denial, and close the connection."""
        assert self.gate
        self.gate.refuse(reason, target, port, tls)
        self.sever(client)

    def cut(self, subject: Any, hook: str, error: Exception) -> None:
        """Close the connection of a failed hook, and record the error."""
        if self.gate is not None:
            self.gate.recorder.error(Component.ADDON, f"{hook}: {type(error).__name__}: {error}")
        if isinstance(subject, flow.Flow):
            kill(subject)
        if isinstance(subject, ServerConnectionHookData):
            subject.server.error = "exeat failed"
        if isinstance(subject, layer.NextLayer):
            subject.layer = Closed(subject.context)
        client = client_of(subject)
        client.error = "exeat failed"
        self.sever(client)

    def sever(self, client: connection.Client) -> None:
        """Reset a client's connection and its server connections."""
        if client.id in self.clients:
            self.clients[client.id].shut = True
        mitmproxy_s: Any = ctx.master.addons
        handler = mitmproxy_s.get("proxyserver").connections.get(client.id)
        for transport in list(handler.transports.values()) if handler else ():
            if isinstance(transport.writer, asyncio.StreamWriter):
                transport.writer.transport.abort()


def wrong(text: str) -> Exception:
    """Return mitmproxy's exception for invalid options."""
    return exceptions.OptionsError(text)  # type: ignore[no-untyped-call]


def client_of(subject: Any) -> connection.Client:
    """Return the client of a hook's argument."""
    if isinstance(subject, connection.Client):
        return subject
    if isinstance(subject, flow.Flow):
        return subject.client_conn
    found = subject.client if isinstance(subject, ServerConnectionHookData) else subject.context.client
    assert isinstance(found, connection.Client)
    return found


def stack(top: layer.Layer) -> Iterator[layer.Layer]:
    """Yield a layer and the known layers below it."""
    below: layer.Layer | None = top
    while below is not None and not isinstance(below, layer.NextLayer):
        yield below
        below = getattr(below, "child_layer", None)


addons = [Exeat()]
