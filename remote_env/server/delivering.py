"""What of a task's observations goes to the client, as it has chosen (docs/protocol.md, "Asking for less")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from remote_env.protocol.delivery import DeliveryPlan, Selection
from remote_env.protocol.image_stream import ImageSender
from remote_env.protocol.stacking import stack
from remote_env.protocol.state_stream import StateSender


class Delivering:
    """Picks and codes the observations of one session.

    Args:
        space: of the task's observations.
        plan: what the client has chosen.

    Attributes:
        space: of what is sent.
        states: writes the states of steps; None: whole.
        has_links: whether these hold poses of links.

    Raises:
        ConfigError: there is no such key or codec.
    """

    def __init__(self, space: Any, plan: DeliveryPlan) -> None:
        selection = Selection(space, plan.keys, float32=plan.float32)
        self.space = selection.space
        self._select = None if selection.is_all else selection
        self._images: ImageSender | None = None
        if plan.codes_images:
            self._images = ImageSender(self.space, plan.codecs, image_every=plan.image_every)
        self.has_links = plan.state_links
        self.states = StateSender() if plan.state_changes else None

    @property
    def codes_images(self) -> bool:
        """Whether observations are values with coded images in them."""
        return self._images is not None

    def pick(self, observation: Any) -> Any:
        """What of an observation is wanted."""
        return observation if self._select is None else self._select(observation)

    def pick_info(self, info: dict[str, Any]) -> dict[str, Any]:
        """An info; of a batch that resets in the same step with what is wanted of the last observations."""
        ends = info.get("final_obs")
        if self._select is None or not isinstance(ends, np.ndarray) or ends.dtype != np.object_:
            return info
        picked = np.empty_like(ends)
        for number, observation in enumerate(ends):
            picked[number] = None if observation is None else self._select(observation)
        return {**info, "final_obs": picked}

    def bring(self, observation: Any, sequence: int, *, is_key: bool) -> Any:
        """What is sent of an observation; with `is_key` it builds on no earlier reply."""
        observation = self.pick(observation)
        return observation if self._images is None else self._images.encode(observation, sequence, is_key=is_key)

    def bring_rows(self, observations: Sequence[Any], sequence: int, *, ends: bool) -> Any:
        """What is sent of observations of several steps, picked already."""
        if self._images is None:
            return stack(observations)
        return self._images.encode_rows(observations, sequence, ends=ends)

    def pick_stacked(self, observations: Any) -> Any:
        """What is wanted of observations that were stacked, or of a list of them."""
        return [self.pick(each) for each in observations] if type(observations) is list else self.pick(observations)

    def forget(self) -> None:
        """Note that a reply with an observation was not sent."""
        if self._images is not None:
            self._images.forget()
        if self.states is not None:
            self.states.forget()
