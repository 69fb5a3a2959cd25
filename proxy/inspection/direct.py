"""Layers that never wait, called without what mitmproxy has for those that do.

mitmproxy's `Layer.handle_event` is a generator around `_handle_event` that stops it at a command which blocks, and
keeps what comes meanwhile. Most layers here never give such a command: a stream waits for its decision and for its
connection, and what opens a connection waits for that. For the others it is one generator less for each event and each
command. One that gave a blocking command after all would be told of its end as of something that it never asked for,
and what isn't understood ends the conversation (invariant 2).
"""

from typing import TYPE_CHECKING

from mitmproxy.proxy.layer import Layer

if TYPE_CHECKING:
    from mitmproxy.proxy.events import Event
    from mitmproxy.proxy.layer import CommandGenerator


class Direct(Layer):
    """A layer that gives no command which blocks."""

    def handle_event(self, event: "Event") -> "CommandGenerator[None]":
        """Handle an event."""
        return self._handle_event(event)
