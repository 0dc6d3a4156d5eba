"""What the observations of a session bring: keys, codecs of images, times (docs/protocol.md, "Asking for less")."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any

from gymnasium import Space

from remote_env.errors import (
    ConnectionLost,
    DeadlineExceeded,
)
from remote_env.protocol import codec, frames, layout
from remote_env.protocol.chunks import MAX_BYTES
from remote_env.protocol.delivery import EVERYTHING, DeliveryPlan, Selection
from remote_env.protocol.image_stream import ImageReceiver, available_codecs, check_codecs, image_paths
from remote_env.session.coder_choice import AUTO, CoderChoice
from remote_env.session.exchange import MALFORMED, Exchange
from remote_env.session.link_estimate import measure_round_trip
from remote_env.session.step_clock import StepClock
from remote_env.spaces import space_from_plain


class Bringing(Exchange):
    """A session that chooses what its observations bring.

    Attributes:
        observation_space: of what they bring.
        delivery: how they come.
        far_codecs: the image codecs of the far end, once `deliver` has heard of them.
    """

    ready: dict[str, Any]
    observation_space: Space[Any]
    delivery: DeliveryPlan = EVERYTHING
    far_codecs: tuple[str, ...] = ()
    _observation_layout: layout.ValueLayout | None
    _images: ImageReceiver | None
    _choice: CoderChoice | None = None
    _is_chosen_anew = False
    _tells_times: bool

    def _with_codecs(self, plan: DeliveryPlan, codec: str | None) -> DeliveryPlan:
        if codec is None:
            return plan
        if codec == AUTO:
            return replace(plan, timing=True)
        return replace(plan, codecs=dict.fromkeys(image_paths(self._select(plan).space), codec))

    def _select(self, plan: DeliveryPlan) -> Selection:
        whole = space_from_plain(self.ready["observation_space"])
        return Selection(whole, plan.keys, float32=plan.float32)

    def deliver(self, plan: DeliveryPlan, timeout_s: float, *, abandons: bool = False) -> None:
        """Have observations brought so from now on.

        Args:
            plan: how; `codecs` by path.
            timeout_s: for the answer [s].
            abandons: a call that is unsettled, as `reset` does, which is to follow.

        Raises:
            ConfigError: there is no such key, or one end lacks such a codec; all stays as it was.
        """
        space = self._select(plan).space
        check_codecs(space, plan.codecs, have=available_codecs(), end="this end")
        body, arrays = codec.encode(plan.to_plain(), where="plan")
        frame = bytearray(frames.HEADER_SIZE) + body
        self._deadline = time.monotonic() + timeout_s
        answer = self._read_value(self._exchange(frames.DELIVER, 0, frame, arrays, abandons=abandons))
        try:
            self.far_codecs = tuple(map(str, answer["codecs"]))
        except MALFORMED as error:
            raise self._malformed(error) from error
        self.delivery = plan
        self._bring(space)
        self._clock = StepClock() if plan.timing else None
        if plan.timing and self.link_estimate.round_trip_s is None:
            with contextlib.suppress(ConnectionLost, DeadlineExceeded):  # the next call finds out
                measure_round_trip(self.control, self.link_estimate)

    def explain_codecs(self) -> dict[str, Any]:
        """How images cross, and why; see `CoderChoice.explain`."""
        if self._choice is not None:
            return self._choice.explain()
        codecs = {path: self.delivery.codecs.get(path, "raw") for path in image_paths(self.observation_space)}
        return {"codecs": codecs, "why": {path: f"{codec}: as it was asked for" for path, codec in codecs.items()}}

    def _adapt(self, timeout_s: float) -> None:
        """Tell the server of codecs that were chosen anew, once nothing is under way."""
        if not self._is_chosen_anew or self._requests.pending or self._choice is None:
            return
        self._is_chosen_anew = False
        codecs = {path: codec for path, codec in self._choice.codecs.items() if codec != "raw"}
        self.deliver(replace(self.delivery, codecs=codecs), timeout_s)

    def _bring(self, space: Space[Any]) -> None:
        self.observation_space = space
        # Where codecs change in a session each reply says itself whether it has a layout or coded images.
        is_coded = self.delivery.codes_images or self._choice is not None
        self._images = ImageReceiver(space, max_bytes=MAX_BYTES) if is_coded else None
        self._observation_layout = layout.compile_layout(space)

    def _finish(self, observation: Any, info: dict[str, Any], header: frames.Header, tail: Any) -> Any:
        """The observation with its images; what belongs to it is told in `info`. Its payload has come."""
        if self._images is not None:
            observation = self._images.decode(observation, header.sequence)
            if self.delivery.image_every > 1:
                info["image_age"] = self._images.age
        if isinstance(tail, dict):
            self._tell_times(info, header.sequence, tail.get("timing"), observation)
        return observation

    def _tell_times(self, info: dict[str, Any], sequence: int, told: Any, observation: Any) -> None:
        """Put into `info` where the time went, by what the server says of its part; the reply has been decoded."""
        if self._clock is None or told is None:
            return
        times = self._clock.tell(sequence, told)
        is_alone = len(self._requests.pending) == 1  # else it waited for others
        if is_alone:
            self.link_estimate.note_reply(times.reply_bytes, times.network_s)
        if self._tells_times:
            info["timing"] = times.to_info()
        if self._choice is not None and observation is not None:
            self._is_chosen_anew |= self._choice.note(
                observation,
                reply_bytes=times.reply_bytes,
                encode_s=times.encode_s,
                network_s=times.network_s if is_alone else None,
                round_trip_s=self.link_estimate.round_trip_s or 0.0,
            )
