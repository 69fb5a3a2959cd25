"""The process that Prometheus asks for a whole service: it has its numbers from the service, and nothing else.

No worker answers scrapes, so that who asks costs no task its turn, and a worker that is replaced leaves no gap.
"""

import asyncio
from typing import TYPE_CHECKING

from proxy.telemetry.prometheus.merging import total
from proxy.telemetry.prometheus.reports import Reported
from proxy.telemetry.prometheus.scrape import ScrapeServer
from proxy.wire import message

if TYPE_CHECKING:
    import socket

    from proxy.telemetry.events import Where
    from proxy.telemetry.metrics import Metrics


class Latest:
    """The numbers that the service has said last."""

    def __init__(self) -> None:
        self._none = total()
        self._reported = Reported()

    def hear(self, said: dict[str, object]) -> None:
        """Take in a piece of the numbers; the last one puts them in the place of those before."""
        self._reported.take(said)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return self._metrics().render()

    def failed(self, where: "Where") -> None:
        """Count something unexpected."""
        self._metrics().failed(where)

    def _metrics(self) -> "Metrics":
        return self._reported.counts or self._none


def serve(control: "socket.socket", listener: "socket.socket") -> None:
    """Answer until the service is gone."""
    asyncio.run(_serve(control, listener))


async def _serve(control: "socket.socket", listener: "socket.socket") -> None:
    latest, gone = Latest(), asyncio.Event()
    control.setblocking(False)

    def hear() -> None:
        try:
            said, _ = message.receive(control)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            said = {}
        if said:
            latest.hear(said)
        else:
            asyncio.get_running_loop().remove_reader(control)
            gone.set()

    asyncio.get_running_loop().add_reader(control, hear)
    server = ScrapeServer(listener, latest)
    await server.start()
    await gone.wait()
    await server.close()
