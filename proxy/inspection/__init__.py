"""Inspection: terminates a connection's TLS and decides on each of its HTTP requests.

This module imports only what a handover needs. It imports the engine, and mitmproxy with it, when the first connection
comes, or a moment after the task has begun: many tasks are over by then. From the handover on, inspection alone closes
a connection and reports its end.
"""

import asyncio
import importlib
from typing import TYPE_CHECKING

from proxy.telemetry.events import Component
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.certificates.leaf_certificates import LeafCertificates
    from proxy.dialing.dialer import Dialer
    from proxy.gate.record import Handover
    from proxy.inspection.engine import Engine
    from proxy.inspection.tls import ServerContexts
    from proxy.sandbox.recorder import Recorder
    from rules.decision import Decision


class Roots:
    """The host's trusted certificates (PEM) for verifying servers; read once, for every sandbox."""

    def __init__(self, pem: bytes) -> None:
        self._pem = pem
        self._server_contexts: ServerContexts | None = None

    def server_contexts(self) -> "ServerContexts":
        """Return the TLS contexts for servers, made on first use. Raises TrustError."""
        if self._server_contexts is None:
            from proxy.inspection.tls import ServerContexts

            self._server_contexts = ServerContexts(self._pem)
        return self._server_contexts


class Inspection:
    """Inspects the connections of one sandbox. For one thread, made within its running loop."""

    def __init__(self, leaves: "LeafCertificates", dialer: "Dialer", recorder: "Recorder", roots: Roots) -> None:
        self._leaves = leaves
        self._dialer = dialer
        self._recorder = recorder
        self._roots = roots
        self._engine: Engine | None = None
        self._waiting: list[Handover] = []
        self._loading: asyncio.Task[None] | None = None
        self._closed = False

    def adopt(self, handover: "Handover") -> None:
        """Take a connection over from the gate."""
        if self._closed:
            handover.give_up(None)
        elif self._engine is None:
            self._waiting.append(handover)
            self.warm()
        else:
            self._start(self._engine, handover)

    def review(self, handover: "Handover", decision: "Decision") -> None:
        """Apply a new decision to a connection: it, or a request on it, may have to end."""
        if handover in self._waiting:
            if not decision.outcome.passes:
                self._waiting.remove(handover)
                handover.give_up(decision.reason)
        elif self._engine is not None:
            self._engine.review(handover, decision)

    def close(self) -> None:
        """Reset every connection, also those handed over later. Idempotent."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        for handover in self._waiting:
            handover.give_up(None)
        self._waiting.clear()
        if self._engine is not None:
            self._engine.close()

    def warm(self) -> None:
        """Start to import the engine in a thread, while the loop goes on. Idempotent."""
        if self._engine is None and self._loading is None and not self._closed:
            self._loading = asyncio.get_running_loop().create_task(self._load())

    async def _load(self) -> None:
        """Import and make the engine, then start the waiting connections; if it fails, reset them."""
        try:
            module = await asyncio.to_thread(importlib.import_module, "proxy.inspection.engine")
            engine = module.Engine(self._leaves, self._dialer, self._recorder, self._roots.server_contexts())
        except Exception as error:  # noqa: BLE001  whatever it is: closed when broken (invariant 2)
            self._recorder.error(Component.INSPECTION, f"can't begin: {error}")
            engine = None
        waiting, self._waiting = self._waiting, []
        self._engine, self._loading = engine, None
        for handover in waiting:
            if engine is None:
                handover.give_up(Reason.GATE_ERROR)
            else:
                self._start(engine, handover)

    def _start(self, engine: "Engine", handover: "Handover") -> None:
        try:
            engine.adopt(handover)
        except Exception as error:  # noqa: BLE001
            self._recorder.error(Component.INSPECTION, f"{type(error).__name__}: {error}", cause=handover.event)
            handover.give_up(Reason.GATE_ERROR)
