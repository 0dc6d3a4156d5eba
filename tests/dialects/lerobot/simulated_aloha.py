"""A simulated robot for LeRobot: ALOHA on MuJoCo behind LeRobot's robot interface. No hardware takes part.

Its observation is the 41 numbers of the task's state, each as "<name>.pos"; its action the 14 joint targets.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision_ops  # noqa: F401
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot

from remote_env.tasks.aloha import AlohaEnv
from remote_env.tasks.aloha_model import ACTION_NAMES

MAX_STEPS = 400


@RobotConfig.register_subclass("simulated_aloha")
@dataclass
class SimulatedAlohaConfig(RobotConfig):
    """What its program takes as --robot.seed and so on."""

    seed: int = 0
    max_steps: int = MAX_STEPS
    report: str = ""


class SimulatedAloha(Robot):
    """One episode; its end is the program's, and the report is written then."""

    config_class = SimulatedAlohaConfig
    name = "simulated_aloha"

    def __init__(self, config: SimulatedAlohaConfig) -> None:
        super().__init__(config)
        self.config = config
        self._env = AlohaEnv(obs_type="state", end_on_success=False)
        self._names = [f"{name}.pos" for name in self._env.state_names]
        self._connected = False
        self._rewards: list[float] = []
        self._times: list[float] = []

    @property
    def observation_features(self) -> dict[str, type]:
        return dict.fromkeys(self._names, float)

    @property
    def action_features(self) -> dict[str, type]:
        return {f"{name}.pos": float for name in ACTION_NAMES}

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    def connect(self, calibrate: bool = True) -> None:
        self._state, _ = self._env.reset(seed=self.config.seed)
        self._connected = True

    def get_observation(self) -> dict[str, Any]:
        return dict(zip(self._names, self._state.tolist(), strict=True))

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        target = [action[name] for name in self.action_features]
        self._state, reward, _, _, _ = self._env.step(target)
        self._rewards.append(float(reward))
        self._times.append(time.monotonic())
        if len(self._rewards) >= self.config.max_steps:
            raise KeyboardInterrupt  # how its program is ended
        return action

    def disconnect(self) -> None:
        self._connected = False
        self._env.close()
        if self.config.report:
            gaps = [late - early for early, late in zip(self._times, self._times[1:], strict=False)]
            report = {
                "steps": len(self._rewards),
                "best": max(self._rewards, default=0.0),
                "last": self._rewards[-1:],
                "gaps_s": sorted(gaps),
            }
            Path(self.config.report).write_text(json.dumps(report))
