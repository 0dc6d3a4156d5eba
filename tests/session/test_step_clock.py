"""Where the time of a step went, by a clock that the test sets."""

from __future__ import annotations

from typing import Any

import pytest

from remote_env.errors import ProtocolError
from remote_env.protocol import frames
from remote_env.session.step_clock import MOST_SENT, StepClock


class Hand:
    """A clock that moves when it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def reply(sequence: int, body: int = 100, payload: int = 0) -> frames.Header:
    header = frames.pack_frame(frames.RESULT, bytes(body), epoch=1, sequence=sequence)
    return frames.parse_header(header[: frames.HEADER_SIZE])._replace(payload_size=payload)


def test_what_nobody_else_took_is_the_network() -> None:
    hand = Hand()
    clock = StepClock(hand)
    clock.note_sent(1)
    hand.now += 0.040
    clock.note_reply(reply(1, 100, 5000))
    hand.now += 0.010
    clock.note_payload(0.010)
    hand.now += 0.003
    times = clock.tell(1, (0.001, 0.020, 0.002, 0.015))
    assert times.network_s == pytest.approx(0.050 - 0.023)
    assert (times.simulate_s, times.render_s) == (pytest.approx(0.005), 0.015)
    assert times.decode_s == pytest.approx(0.003)
    assert times.reply_bytes == frames.HEADER_SIZE + 100 + 5000
    info = times.to_info()
    assert set(info) == {"encode_s", "network_s", "queue_s", "simulate_s", "render_s", "decode_s"}
    assert sum(info.values()) == pytest.approx(0.053)


def test_no_part_is_below_nothing_when_clocks_disagree() -> None:
    hand = Hand()
    clock = StepClock(hand)
    clock.note_sent(1)
    hand.now += 0.001
    clock.note_reply(reply(1))
    times = clock.tell(1, (0.0, 0.5, 0.0, 0.7))
    assert (times.network_s, times.simulate_s) == (0.0, 0.0)


def test_requests_whose_times_nobody_asks_for_are_forgotten() -> None:
    clock = StepClock()
    for sequence in range(10 * MOST_SENT):
        clock.note_sent(sequence)
    assert len(clock._sent) == MOST_SENT
    clock.note_reply(reply(1))
    assert clock.tell(1, (0.0, 0.0, 0.0, 0.0)).network_s == 0.0  # not known any more


@pytest.mark.parametrize(
    "told", [None, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0, "4"), (0.0, -1.0, 0.0, 0.0), (0, 0, 0, float("nan"))]
)
def test_times_that_are_none_are_refused(told: Any) -> None:
    clock = StepClock()
    clock.note_sent(1)
    clock.note_reply(reply(1))
    with pytest.raises(ProtocolError, match="times of a step that are none"):
        clock.tell(1, told)
