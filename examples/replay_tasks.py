"""The tasks that `remote_replay.py` knows by name: where they run, who drives them, in what they are replayed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
from isaac import CARTPOLE_ID, PICK_ID

from remote_env.errors import ConfigError, Unsupported
from remote_env.record import observe, observe_aloha
from remote_env.state import SceneState

ISAAC = Path(__file__).parent / "isaac"

Policy = Callable[[Any, int], Any]  # observation, step -> action
EpisodePolicy = Callable[[SceneState, int], Policy]  # the start state and the seed -> the episode's policy


@dataclass(frozen=True)
class Task:
    """A task by its short name.

    Attributes:
        env_id: as `RemoteEnv` takes it.
        env_kwargs: what the environment is made with.
        simulator: which backend.
        upload: what is sent along.
        make_expert: makes the scripted expert; None where the task has none.
        model: of the local replay, or what finds it; None: the one of the Gymnasium task of the same id.
        mapping: from the task's names to the model's; None for the same names.
        camera: the view of the video; None takes the model's first.
        observe: what of the observations is kept under ACT's names.
    """

    env_id: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    simulator: str = "gymnasium"
    upload: Sequence[Path] = ()
    make_expert: Callable[[], EpisodePolicy] | None = None
    model: str | Path | Callable[[], Path] | None = None
    mapping: Path | None = None
    camera: str | None = None
    observe: Callable[..., Any] = observe

    @property
    def label(self) -> str:
        """The task's name, without the module that registers it."""
        return self.env_id.rpartition(":")[2]

    def local_model(self) -> Any:
        """What to replay in, on this machine.

        Raises:
            ConfigError: it is not installed here.
            Unsupported: the task has no MuJoCo model.
        """
        if self.model is not None:
            return self.model() if callable(self.model) else self.model
        if self.simulator != "gymnasium":
            raise Unsupported(
                f"no local model is known for {self.env_id}: name one with --model FILE.xml, or --model capture for "
                "what the far end tells of its scene"
            )
        return _gymnasium_model(self)


def _gymnasium_model(task: Task) -> Any:
    try:
        model = getattr(gymnasium.make(task.env_id, **task.env_kwargs).unwrapped, "model", None)
    except gymnasium.error.Error as error:
        raise ConfigError(f"replaying needs the model of {task.env_id} on this machine too: {error}") from error
    if model is None:
        raise Unsupported(f"{task.env_id} has no MuJoCo model to replay in; its captures are whole all the same")
    return model


def _aloha(env_id: str, name: str) -> Task:
    """An ALOHA task: the hand-over is complete when the right gripper let go, long after the task's own end."""

    def make_expert() -> EpisodePolicy:
        from remote_env.tasks.aloha_expert import make_expert

        return _planned(make_expert(name))

    def model() -> Path:
        from remote_env.tasks.aloha_model import aloha_model_path

        return Path(aloha_model_path(name))

    kwargs = {"end_on_success": False}
    return Task(env_id, kwargs, make_expert=make_expert, model=model, camera="angle", observe=observe_aloha)


def _pick_expert() -> EpisodePolicy:
    from isaac.expert import PickExpert

    return _planned(PickExpert())


def _balance() -> EpisodePolicy:
    from isaac.expert import balance

    return lambda _state, _seed: lambda observation, _step: balance(observation)


def _planned(expert: Any) -> EpisodePolicy:
    """The policy of an expert that plans from the start state."""

    def start(state: SceneState, _seed: int) -> Policy:
        expert.reset(state)
        return lambda _observation, step: expert.action(step)

    return start


def _isaac(env_id: str, expert: Callable[[], EpisodePolicy], model: str, mapping: str, camera: str) -> Task:
    return Task(
        f"isaac:{env_id}",  # the package of that name, which is sent along, registers it
        simulator="isaaclab",
        upload=(ISAAC,),
        make_expert=expert,
        model=ISAAC / model,
        mapping=ISAAC / mapping,
        camera=camera,
    )


TASKS = {
    "aloha-transfer-cube": _aloha("remote_env/AlohaTransferCube-v0", "transfer_cube"),
    "aloha-insertion": _aloha("remote_env/AlohaInsertion-v0", "insertion"),
    "isaac-pick": _isaac(PICK_ID, _pick_expert, "pick.xml", "mapping.yaml", "front"),
    "isaac-cartpole": _isaac(CARTPOLE_ID, _balance, "cartpole.xml", "cartpole_mapping.yaml", "front"),
}


def make_policy(name: str | None, task: Task, env: gymnasium.Env[Any, Any]) -> EpisodePolicy:
    """The policy called "scripted", "random" or "module:function"; None: the first that the task has.

    Raises:
        ConfigError: the task has no scripted expert, or there is no such function.
    """
    name = name or ("scripted" if task.make_expert else "random")
    if name == "random":
        return lambda _state, seed: _random_policy(env, seed)
    if name == "scripted":
        if task.make_expert is None:
            raise ConfigError(f"{task.env_id} has no scripted expert; use --policy random or --policy module:function")
        return task.make_expert()
    function = _import(name)
    return lambda _state, _seed: lambda observation, _step: function(observation)


def _random_policy(env: gymnasium.Env[Any, Any], seed: int) -> Policy:
    env.action_space.seed(seed)
    return lambda _observation, _step: env.action_space.sample()


def _import(name: str) -> Callable[[Any], Any]:
    module, _, function = name.partition(":")
    try:
        found: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--policy {name}: {error}; give random, scripted or module:function") from error
    return found
