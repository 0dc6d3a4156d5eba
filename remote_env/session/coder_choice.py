"""Which lossless codec makes a session's images arrive soonest: `codecs="auto"`.

What an image costs with each codec is measured here, on images that came, with the very code that the server runs; how
fast that runs there is scaled by what the server says of the codec in force, and how fast the link is by the replies
that came. So no codec has to be tried on the wire to be left again, and the choice follows a link that changes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from remote_env.protocol.coding import LOSSY
from remote_env.protocol.image_stream import (
    CODECS,
    ImageReceiver,
    ImageSender,
    available_codecs,
    box_paths,
    image_paths,
)

AUTO = "auto"
KEPT = 15  # samples of the link, and of the server's speed
# Of a measurement, and how many count: the shortest, since what makes one longer is no codec.
REPEATS, REMEMBERED = 2, 3
BETTER = 0.93  # another codec is taken where an image would take less than this share of the time
LEAST_PAUSE_S, PAUSE_PER_COST = 5.0, 100.0  # measuring again takes at most a hundredth of the time
OTHERWISE = 0.25  # a reply's size is a surprise that moves its time by such a share: images have become others
SURPRISED_PAUSE_PER_COST = 10.0
FASTEST_BYTES_PER_S = 20e9
COMPARED, LARGER = 5, 3  # so many replies are compared with the first, which was so many times as large
REMEMBERED_REPLIES = 1000  # so long ago a large reply tells of the link, where only small ones came since
LEAST_SAMPLE_BYTES = 8192  # of a smaller reply the round trip is most, and that varies

Image = NDArray[Any]


class Cost(NamedTuple):
    """What one image costs with a codec, as measured here.

    Attributes:
        encode_s: to encode it [s].
        size_bytes: what is sent.
        decode_s: to decode it [s].
    """

    encode_s: float
    size_bytes: int
    decode_s: float


class CoderChoice:
    """Decides for each image of a session's observations; told of every reply that brought some.

    Args:
        space: of the observations, as they are sent.
        theirs: the codecs that the server has.
        is_near: the server is on this machine, with nothing in between: images are sent as they are.

    Attributes:
        codecs: what the server is to be told, by path.
    """

    def __init__(self, space: Space[Any], theirs: Sequence[str], *, is_near: bool) -> None:
        self._is_near = is_near
        self._boxes = {path: box for path, box in box_paths(space).items() if path in image_paths(space)}
        ours = available_codecs()
        self._candidates = [codec for codec in CODECS if codec in theirs and codec in ours and codec not in LOSSY]
        self.codecs = dict.fromkeys(self._boxes, "raw")
        self._costs: dict[str, dict[str, Cost]] = {path: {} for path in self._boxes}
        self._measured: dict[tuple[str, str], deque[Cost]] = {}
        self._before: dict[str, Image] = {}  # images of the reply before, where the next one is to be measured
        self._link = _Link()
        self._scales: deque[float] = deque(maxlen=KEPT)
        self._measured_at, self._cost_s, self._is_whole = 0.0, 0.0, False

    def note(
        self,
        observation: Any,
        *,
        reply_bytes: int,
        encode_s: float,
        network_s: float | None,
        round_trip_s: float,
    ) -> bool:
        """Learn from a reply with images.

        Args:
            observation: as it was decoded; not kept.
            reply_bytes: what the whole reply took on the wire.
            encode_s: what the server took to encode it [s].
            network_s: what request and reply took, less what the server did meanwhile [s]; None where that is unknown,
                as with several requests under way.
            round_trip_s: of a few bytes [s].

        Returns:
            Whether `codecs` has changed: the server is to be told before the next step.
        """
        if self._is_near or len(self._candidates) < 2 or not self._boxes:
            return False
        images = self._find_images(observation)
        if network_s is not None and reply_bytes >= LEAST_SAMPLE_BYTES:
            self._link.note(reply_bytes, network_s - round_trip_s)
        expected_s = sum(self._cost(path).encode_s for path in images)
        if expected_s and any(self.codecs[path] != "raw" for path in images):
            self._scales.append(encode_s / expected_s)
        if self._is_due(reply_bytes):
            if self._is_whole and not self._before and self._is_surprise(reply_bytes):
                self._measured.clear()  # of images that are no more
            self._measure(images)
        return self._choose() if self._link.is_known else False

    def explain(self) -> dict[str, Any]:
        """What is chosen and why: `codecs`, `why` (a sentence for each path), `costs` and `frame_s` by path and codec.

        `costs` has the measured `Cost` of each codec as a dict, `frame_s` what an image is expected to take with it
        between the server's array and ours [s], and `bytes_per_s` is the link's rate that this reckons with.
        """
        return {
            "codecs": dict(self.codecs),
            "why": {path: self._why(path) for path in self._boxes},
            "costs": {
                path: {codec: cost._asdict() for codec, cost in costs.items()} for path, costs in self._costs.items()
            },
            "frame_s": {path: self._frames_s(path) for path in self._boxes},
            "bytes_per_s": self._link.bytes_per_s if self._link.is_known else None,
        }

    # Measuring

    def _is_due(self, reply_bytes: int) -> bool:
        """Whether images are to be measured: those of the first two replies, then now and then."""
        if not self._is_whole or self._before:
            return True
        passed_s = time.perf_counter() - self._measured_at
        if self._is_surprise(reply_bytes):
            return passed_s >= SURPRISED_PAUSE_PER_COST * self._cost_s
        return passed_s >= max(LEAST_PAUSE_S, PAUSE_PER_COST * self._cost_s)

    def _is_surprise(self, reply_bytes: int) -> bool:
        if not self._link.is_known:
            return False
        expected_s = sum(self._frames_s(path).get(self.codecs[path], 0.0) for path in self._boxes)
        expected_bytes = sum(self._cost(path).size_bytes for path in self._boxes)
        return abs(reply_bytes - expected_bytes) / self._link.bytes_per_s > OTHERWISE * expected_s

    def _measure(self, images: dict[str, Image]) -> None:
        """Measure these images behind those of the reply before, if they were kept; else keep them for the next."""
        began = time.perf_counter()
        before, self._before = self._before, {}
        if not before:
            self._before = {path: image.copy() for path, image in images.items()}
        if before or not self._is_whole:
            for path, image in images.items():
                for codec in self._candidates:
                    if codec != "delta" or path in before:
                        self._remember(path, codec, measure(self._boxes[path], codec, before.get(path), image))
            self._is_whole = bool(before)
            self._measured_at = time.perf_counter()
            self._cost_s = self._measured_at - began

    def _remember(self, path: str, codec: str, cost: Cost) -> None:
        measured = self._measured.setdefault((path, codec), deque(maxlen=REMEMBERED))
        measured.append(cost)
        self._costs[path][codec] = _least(measured)

    def _find_images(self, observation: Any) -> dict[str, Image]:
        found = {path: _look_up(observation, path) for path in self._boxes}
        return {path: image for path, image in found.items() if isinstance(image, np.ndarray)}

    def _cost(self, path: str) -> Cost:
        return self._costs[path].get(self.codecs[path], Cost(0.0, 0, 0.0))

    # Choosing

    def _frames_s(self, path: str) -> dict[str, float]:
        if not self._link.is_known:
            return {}
        scale, link = median(self._scales) if self._scales else 1.0, self._link
        return {
            codec: scale * cost.encode_s + cost.size_bytes / link.rate_of(cost.size_bytes) + cost.decode_s
            for codec, cost in self._costs[path].items()
        }

    def _choose(self) -> bool:
        chosen = {path: self._choose_for(path) for path in self._boxes}
        changed = chosen != self.codecs
        self.codecs = chosen
        if changed:
            self._scales.clear()  # another codec may run at another share of our speed
        return changed

    def _choose_for(self, path: str) -> str:
        frames_s, present = self._frames_s(path), self.codecs[path]
        if not frames_s:
            return present
        best = min(frames_s, key=frames_s.__getitem__)
        return best if frames_s[best] < BETTER * frames_s.get(present, np.inf) else present

    def _why(self, path: str) -> str:
        if self._is_near:
            return "raw: the server is on this machine, where copying is cheaper than coding"
        if len(self._candidates) < 2:
            return "raw: the two ends have no other lossless codec in common; pip install 'remote-env[images]' at both"
        frames_s, costs = self._frames_s(path), self._costs[path]
        if not frames_s:
            return "raw: nothing is measured yet"
        told = [
            f"{codec} {frames_s[codec] * 1e3:.1f} ms ({costs[codec].size_bytes / 1e3:.0f} kB)"
            for codec in sorted(frames_s, key=frames_s.__getitem__)
        ]
        return (
            f"{self.codecs[path]}: an image would take {', '.join(told)} at {self._link.bytes_per_s * 8e-6:.0f} Mbit/s"
        )


class _Link:
    """How fast the link is by the replies that came, the first of which were large.

    A reply takes longer than its bytes alone: the processes at both ends have to wake up. Of a small reply that is most
    of its time, and would make a fast link look slow. How long it takes shows where small replies follow a large one.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._overhead_s: float | None = None
        self._samples: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._large: deque[tuple[int, int, float]] = deque(maxlen=COMPARED)  # with the number of the reply
        self._replies = 0

    def note(self, size_bytes: int, on_wire_s: float) -> None:
        """A reply of so many bytes took so long beyond a round trip [s]."""
        self._first = self._first or (size_bytes, on_wire_s)
        self._samples.append((size_bytes, on_wire_s))
        self._replies += 1
        if not self._large or LARGER * size_bytes > max(size for _, size, _ in self._large):
            self._large.append((self._replies, size_bytes, on_wire_s))
        if self._overhead_s is None and len(self._samples) > COMPARED:
            self._compare(*self._first)

    def _compare(self, large: int, large_s: float) -> None:
        latest = list(self._samples)[-COMPARED:]
        small, small_s = (median(column) for column in zip(*latest, strict=True))
        if LARGER * small < large:
            each_s = max(large_s - small_s, 0.0) / (large - small)
            self._overhead_s = max(small_s - each_s * small, 0.0)

    @property
    def is_known(self) -> bool:
        """Whether there is anything to judge by."""
        return bool(self._samples)

    @property
    def bytes_per_s(self) -> float:
        """The median over the last replies [1/s]."""
        return median(self._rate(size, on_wire_s) for size, on_wire_s in self._samples)

    def rate_of(self, size_bytes: int) -> float:
        """At what rate a reply of so many bytes is to be expected [1/s]: as those of about its size have shown.

        Links let a few bytes through faster than many in a row, so small replies tell little of large ones. Large ones
        are remembered for a while therefore.
        """
        latest = [(self._replies, *sample) for sample in self._samples]
        known = [
            self._rate(size, on_wire_s)
            for number, size, on_wire_s in (*self._large, *latest)
            if size_bytes < LARGER * size < LARGER**2 * size_bytes and self._replies - number < REMEMBERED_REPLIES
        ]
        return median(known) if known else self.bytes_per_s

    def _rate(self, size_bytes: int, on_wire_s: float) -> float:
        return size_bytes / max(on_wire_s - (self._overhead_s or 0.0), size_bytes / FASTEST_BYTES_PER_S)


def measure(box: spaces.Box, codec: str, before: Image | None, image: Image) -> Cost:
    """What `image` costs with a codec when `before` came before it."""
    return _least([_measure_once(box, codec, before, image) for _ in range(REPEATS)])


def _least(costs: Sequence[Cost] | deque[Cost]) -> Cost:
    """The shortest times, and the last size."""
    return Cost(min(cost.encode_s for cost in costs), costs[-1].size_bytes, min(cost.decode_s for cost in costs))


def _measure_once(box: spaces.Box, codec: str, before: Image | None, image: Image) -> Cost:
    sender, receiver = ImageSender(box, {"": codec}), ImageReceiver(box, max_bytes=image.nbytes)
    if codec == "delta" and before is not None:
        receiver.decode(sender.encode(before, 1), 1)
    began = time.perf_counter()
    encoded = sender.encode(image, 2)
    encoded_at = time.perf_counter()
    receiver.decode(encoded, 2)
    ended = time.perf_counter()
    size = encoded.nbytes if isinstance(encoded, np.ndarray) else sum(len(part) for part in encoded["data"])
    return Cost(encoded_at - began, size, ended - encoded_at)


def _look_up(observation: Any, path: str) -> Any:
    """What lies at a path; None where nothing does."""
    for key in path.split("/") if path else ():
        if isinstance(observation, dict):
            observation = observation.get(key)
        elif isinstance(observation, (list, tuple)) and key.isdigit() and int(key) < len(observation):
            observation = observation[int(key)]
        else:
            return None
    return observation
