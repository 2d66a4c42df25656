"""Connections on which no whole head of a request arrives in time are closed, which uvicorn leaves open."""

from __future__ import annotations

from asyncio import TimerHandle, Transport

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 5.0
"""As long as uvicorn keeps a connection open for a next request."""


class Timely(H11Protocol):
    """Uvicorn's own protocol, with a limit on the time between the first byte of a head and its last."""

    _late: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A new connection has to send a request, too."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Takes what was sent."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE and self._late is not None:
            self._late.cancel()
            self._late = None
        elif self.conn.their_state is h11.IDLE and self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)
