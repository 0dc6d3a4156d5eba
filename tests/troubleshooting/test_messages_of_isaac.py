"""What is told of Isaac Lab and MetaSim where they are not installed, or are asked for what they do not have."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from gymnasium import spaces
from quotes import produces

from remote_env.server.isaac.building import find_lab
from remote_env.server.isaac.observations import check_action
from remote_env.server.isaac.options import Options, apply_overrides
from remote_env.server.isaac.tasks import find_task
from remote_env.server.metasim_backend import MetaSimBackend


@produces("ConfigError: simulator='isaaclab': … has no isaaclab; pass python= with the interpreter that has it, …")
def test_an_interpreter_without_isaac_lab() -> None:
    find_lab()


@produces("ConfigError: simulator='metasim': … cannot import 'metasim…'. …")
def test_an_interpreter_without_metasim() -> None:
    MetaSimBackend().make("metasim", {"simulator": "mujoco", "robots": ["franka"]})


@produces("ConfigError: there is no task … among the … of Isaac Lab here…")
def test_a_task_that_there_is_not() -> None:
    find_task("Isaac-Nothing-v0", None)


@produces(
    "ConfigError: the isaaclab backend has no keyword argument …; what the task's configuration holds goes into …"
)
def test_a_keyword_that_is_the_configuration_s() -> None:
    Options.parse({"decimation": 4})


@produces("ConfigError: …=… is a …; the isaaclab backend takes …")
def test_a_keyword_of_another_type() -> None:
    Options.parse({"headless": "yes"})


@produces("ConfigError: cfg={'…': …}: … has no …; it has …")
def test_an_override_that_leads_nowhere() -> None:
    apply_overrides(SimpleNamespace(sim=SimpleNamespace(dt=0.01)), {"sim.timestep": 0.005})


@produces("InputError: an action of …; this task takes …")
def test_an_action_of_another_shape() -> None:
    check_action(np.zeros(3), spaces.Box(-1, 1, (7,), np.float32), None)
