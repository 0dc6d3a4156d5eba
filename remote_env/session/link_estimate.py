"""What a session's exchanges show of its link: how long a round trip takes, and how many bytes come in a second."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

from remote_env.session.control import ControlLink

LARGE_BYTES = 128 << 10  # a smaller payload may lie in the receive buffer before anybody looks
KEPT = 32  # samples; a link changes
ASKS, ASK_TIMEOUT_S = 5, 5.0
NO_PROBLEMS = 1 << 53  # a number that no problem in a log reaches


class LinkEstimate:
    """A link as it has shown itself lately. Cheap to feed: nothing is computed before somebody asks."""

    def __init__(self) -> None:
        self._round_trips_s: deque[float] = deque(maxlen=KEPT)
        self._rates: deque[float] = deque(maxlen=KEPT)

    @property
    def round_trip_s(self) -> float | None:
        """The shortest round trip of the last ones: what makes one longer is not the link; None before the first."""
        return min(self._round_trips_s, default=None)

    @property
    def bytes_per_s(self) -> float | None:
        """The median rate at which large replies came in; None before the first."""
        return median(self._rates) if self._rates else None

    def note_round_trip(self, seconds: float) -> None:
        """A few bytes went there and back in so long [s]."""
        self._round_trips_s.append(seconds)

    def note_payload(self, size_bytes: int, seconds: float) -> None:
        """So many bytes came behind a reply's header in so long [s]; the reply was waited for when it came."""
        if size_bytes >= LARGE_BYTES and seconds > 0:
            self._rates.append(size_bytes / seconds)

    def note_reply(self, size_bytes: int, network_s: float) -> None:
        """A request and its reply of so many bytes were on their way for so long [s], there and back together."""
        if size_bytes < LARGE_BYTES:
            return
        on_wire_s = network_s - (self.round_trip_s or 0.0)
        if on_wire_s > 0:
            self._rates.append(size_bytes / on_wire_s)


def measure_round_trip(control: ControlLink, estimate: LinkEstimate, asks: int = ASKS) -> None:
    """Ask the supervisor, which answers at once whatever its simulator does, and note how long each answer takes.

    Raises:
        ConnectionLost, DeadlineExceeded: the link is cut just now, or silent.
    """
    session = str(control.welcome["session"])
    for _ in range(asks):
        began = time.perf_counter()
        control.ping(session, NO_PROBLEMS, time.monotonic() + ASK_TIMEOUT_S)
        estimate.note_round_trip(time.perf_counter() - began)
