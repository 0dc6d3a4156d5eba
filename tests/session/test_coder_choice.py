"""What codecs="auto" takes on which link, with the costs of a table, and that what it measures is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from remote_env.protocol.image_stream import CODECS
from remote_env.session import coder_choice
from remote_env.session.coder_choice import CoderChoice, Cost, measure

SHAPE = (480, 640, 3)
SPACE = spaces.Dict(top=spaces.Box(0, 255, SHAPE, np.uint8), arm=spaces.Box(-1, 1, (14,)))
# A camera's image, as benchmarks/bench_images.py has it.
NOISY = {
    "raw": Cost(0.0, 921_600, 0.0),
    "zstd": Cost(3.0e-3, 440_000, 1.0e-3),
    "bitlz4": Cost(1.0e-3, 477_000, 0.8e-3),
    "bitzstd": Cost(2.9e-3, 401_000, 1.6e-3),
    "delta": Cost(4.0e-3, 443_000, 1.5e-3),
}


class SlowLink:
    """A session on a link of which everything is known. Nothing is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, theirs: tuple[str, ...] = CODECS, **options: Any) -> None:
        self.costs, self.measured = dict(NOISY), 0
        monkeypatch.setattr(coder_choice, "measure", self._measure)
        self.choice = CoderChoice(SPACE, theirs, **{"is_near": False, **options})
        self.told = 0

    def _measure(self, _box: Any, codec: str, _before: Any, _image: Any) -> Cost:
        self.measured += 1
        return self.costs[codec]

    def run(self, mbit: float, replies: int, *, server_slowness: float = 1.0, overhead_s: float = 0.0) -> str:
        """What is chosen after so many replies at that rate."""
        observation = {"top": np.zeros(SHAPE, np.uint8), "arm": np.zeros(14)}
        for _ in range(replies):
            cost = self.costs[self.choice.codecs["top"]]
            self.told += self.choice.note(
                observation,
                reply_bytes=cost.size_bytes,
                encode_s=server_slowness * cost.encode_s,
                network_s=0.02 + overhead_s + cost.size_bytes * 8e-6 / mbit,
                round_trip_s=0.02,
            )
        return self.choice.codecs["top"]


@pytest.mark.parametrize(
    ("mbit", "expected"), [(10, "bitzstd"), (100, "bitzstd"), (1000, "bitlz4"), (10_000, "raw"), (1e9, "raw")]
)
def test_the_slower_the_link_the_more_is_spent_on_coding(
    mbit: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = SlowLink(monkeypatch)
    assert link.run(mbit, 1) == expected
    assert link.run(mbit, 40) == expected
    assert link.told == (expected != "raw")


def test_it_follows_a_link_and_a_server_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SlowLink(monkeypatch)
    assert link.run(100, 5) == "bitzstd"
    assert link.run(1000, 40) == "bitlz4"
    assert link.run(100, 40) == "bitzstd"
    assert link.run(100, 40, server_slowness=12.0) == "bitlz4"


def test_what_would_gain_little_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SlowLink(monkeypatch)
    assert link.run(20, 5) == "bitzstd"
    link.costs["zstd"] = NOISY["bitzstd"]._replace(size_bytes=390_000)
    link.choice._measured_at = float("-inf")  # measure again now
    assert link.run(20, 5) == "bitzstd"
    link.costs["zstd"] = NOISY["bitzstd"]._replace(size_bytes=300_000)
    link.choice._measured_at = float("-inf")
    assert link.run(20, 5) == "zstd"


def test_it_measures_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SlowLink(monkeypatch)
    link.run(100, 50)
    assert link.measured == 4 + 5  # without one before, and with it


def test_waking_up_is_not_taken_for_a_slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SlowLink(monkeypatch)
    link.costs = {  # a rendered image's
        "raw": Cost(0.0, 921_600, 0.0),
        "zstd": Cost(0.9e-3, 34_000, 0.4e-3),
        "bitlz4": Cost(1.6e-3, 90_000, 1.7e-3),
        "bitzstd": Cost(2.3e-3, 47_000, 1.8e-3),
        "delta": Cost(1.8e-3, 9_000, 2.0e-3),
    }
    assert link.run(1000, 40, overhead_s=5e-3) == "zstd"
    assert link.choice.explain()["bytes_per_s"] == pytest.approx(125e6, rel=0.2)
    assert link.run(20, 40, overhead_s=5e-3) == "delta"


def test_a_link_that_lets_small_replies_through_at_once_is_not_tried_with_large_ones_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = SlowLink(monkeypatch)
    link.costs["zstd"] = Cost(4.0e-3, 33_000, 4.0e-3)  # a rendered image's size
    observation = {"top": np.zeros(SHAPE, np.uint8), "arm": np.zeros(14)}
    for _ in range(200):
        cost = link.costs[link.choice.codecs["top"]]
        mbit = 300 if cost.size_bytes > 100_000 else 3000
        network_s = 0.02 + cost.size_bytes * 8e-6 / mbit
        sent = {"reply_bytes": cost.size_bytes, "encode_s": cost.encode_s, "network_s": network_s}
        link.told += link.choice.note(observation, **sent, round_trip_s=0.02)
    assert link.choice.codecs["top"] == "zstd"
    assert link.told <= 3


def test_images_that_have_become_others_are_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SlowLink(monkeypatch)
    assert link.run(300, 20) == "bitlz4"
    link.costs["bitlz4"] = NOISY["bitlz4"]._replace(size_bytes=900_000)
    assert link.run(300, 5) == "bitzstd"
    assert link.measured == 4 + 5 + 5


def test_on_one_machine_nothing_is_coded_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SlowLink(monkeypatch, is_near=True)
    assert link.run(100, 5) == "raw"
    assert link.measured == 0
    assert link.choice.explain()["why"] == {
        "top": "raw: the server is on this machine, where copying is cheaper than coding"
    }


def test_what_the_server_lacks_or_what_changes_images_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    only_zstd = SlowLink(monkeypatch, theirs=("raw", "zstd", "jpeg"))
    assert only_zstd.run(20, 5) == "zstd"
    assert set(only_zstd.choice.explain()["costs"]["top"]) == {"raw", "zstd"}
    assert SlowLink(monkeypatch, theirs=("raw", "jpeg")).run(20, 5) == "raw"


def test_it_says_what_it_chose_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SlowLink(monkeypatch)
    assert link.choice.explain()["why"]["top"] == "raw: nothing is measured yet"
    link.run(100, 20)
    told = link.choice.explain()
    assert told["codecs"] == {"top": "bitzstd"}
    assert told["why"]["top"].startswith(
        "bitzstd: an image would take bitzstd 36.6 ms (401 kB), zstd 39.2 ms (440 kB), "
    )
    assert told["why"]["top"].endswith("raw 73.7 ms (922 kB) at 100 Mbit/s")
    assert told["bytes_per_s"] == pytest.approx(12.5e6)
    assert told["costs"]["top"]["raw"] == {"encode_s": 0.0, "size_bytes": 921_600, "decode_s": 0.0}


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_measured_is_what_is_sent(codec: str) -> None:
    before = np.kron(np.arange(192, dtype=np.uint8).reshape(8, 8, 3), np.ones((8, 8, 1), np.uint8))
    image = before.copy()
    image[3:9, 3:9] = 0
    cost = measure(spaces.Box(0, 255, (64, 64, 3), np.uint8), codec, before, image)
    assert cost.encode_s > 0
    assert cost.decode_s > 0
    assert cost.size_bytes == image.nbytes if codec == "raw" else 0 < cost.size_bytes < image.nbytes / 2
