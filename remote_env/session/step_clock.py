"""Where the time of a step went: what the server says of its part, and what is left for the network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from remote_env.errors import ProtocolError
from remote_env.protocol import frames

MOST_SENT = 256  # requests whose times of sending are kept; those of calls are never asked for


class StepTimes(NamedTuple):
    """One step, or one chunk of them, from sending the request to having its result [s].

    Attributes:
        encode_s: the simulator's coding of the observation.
        network_s: what is left of the time between sending the request and the reply's last byte; of a step that was
            sent ahead it includes what that waited for those before it, and for its caller.
        queue_s: between the request's arrival at the simulator and its beginning.
        simulate_s: the task's own step, but for what it drew.
        render_s: drawing images, in the task.
        decode_s: what this end did with the reply.
        reply_bytes: of the whole reply.
    """

    encode_s: float
    network_s: float
    queue_s: float
    simulate_s: float
    render_s: float
    decode_s: float
    reply_bytes: int

    def to_info(self) -> dict[str, float]:
        """What stands in an info as "timing"."""
        return {name: value for name, value in self._asdict().items() if name.endswith("_s")}


class StepClock:
    """Notes when a session's requests go out and their replies come in.

    Args:
        clock: seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._sent: dict[int, float] = {}
        self._arrived = self._fill_s = 0.0
        self._reply_bytes = 0

    def note_sent(self, sequence: int) -> None:
        """The request of that number goes out now."""
        if len(self._sent) >= MOST_SENT:
            del self._sent[next(iter(self._sent))]
        self._sent[sequence] = self._clock()

    def note_reply(self, header: frames.Header) -> None:
        """A reply's header and body have come just now."""
        self._arrived, self._fill_s = self._clock(), 0.0
        self._reply_bytes = frames.HEADER_SIZE + header.body_size + header.payload_size

    def note_payload(self, seconds: float) -> None:
        """Its payload came, too, in so long [s]."""
        self._fill_s += seconds

    def tell(self, sequence: int, told: Any) -> StepTimes:
        """The times of the reply to that request, which has been decoded just now.

        Args:
            sequence: of the request.
            told: what the server says: queued, simulated with all that was drawn, encoded, drawn [s].

        Raises:
            ProtocolError: it says something else.
        """
        queue_s, simulate_s, encode_s, render_s = _check_told(told)
        came = self._arrived + self._fill_s
        began = self._sent.pop(sequence, came)
        return StepTimes(
            encode_s=encode_s,
            network_s=max(came - began - queue_s - simulate_s - encode_s, 0.0),
            queue_s=queue_s,
            simulate_s=max(simulate_s - render_s, 0.0),
            render_s=render_s,
            decode_s=max(self._clock() - came, 0.0),
            reply_bytes=self._reply_bytes,
        )


def _check_told(told: Any) -> tuple[float, float, float, float]:
    is_times = (
        isinstance(told, (tuple, list)) and len(told) == 4 and all(isinstance(each, (int, float)) for each in told)
    )
    if not is_times or not all(math.isfinite(each) and each >= 0 for each in told):
        raise ProtocolError(f"times of a step that are none: {str(told)[:100]}")
    queue_s, simulate_s, encode_s, render_s = map(float, told)
    return queue_s, simulate_s, encode_s, render_s
