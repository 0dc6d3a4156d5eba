"""render="local": what a far simulator shows, drawn here by a local MuJoCo model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from remote_env.env.arguments import Arguments
from remote_env.errors import ConfigError, InputError, Unsupported
from remote_env.session import BatchStates
from remote_env.state import SceneDescription, SceneState
from remote_env.tasks import ALOHA_TASKS

if TYPE_CHECKING:
    from remote_env.replay.mirror import Mirror
    from remote_env.replay.replayer import Frame, Replayer

OPTIONS = ("width", "height", "camera", "quality", "rate_hz", "env_ids")
_OF_ALOHA = ("width", "height", "quality")  # arguments of those tasks that say how they render themselves

States: TypeAlias = SceneState | BatchStates


class Source(Protocol):
    """What a local view asks of its environment."""

    @property
    def remote_spec(self) -> dict[str, Any]:
        """Facts of the task; its id."""

    def get_scene_description(self) -> SceneDescription:
        """What the scene looks like, one round trip."""


class LocalView:
    """Draws an environment's states in a local model: exactly one of them when asked, and the newest as they come.

    What draws is made at its first use, and made again after `close`.

    Args:
        arguments: of the environment.

    Raises:
        ConfigError: an option is unknown, or MuJoCo is not installed.
    """

    def __init__(self, arguments: Arguments) -> None:
        options = dict(arguments.local_view or {})
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise ConfigError(f"local_view has no {unknown[0]!r}; it takes {', '.join(OPTIONS)}")
        if importlib.util.find_spec("mujoco") is None:
            raise ConfigError("drawing here takes MuJoCo, which is not installed: pip install mujoco")
        self._given_model, self._mapping = arguments.local_model, arguments.local_mapping
        self._rate_hz = options.pop("rate_hz", 30.0)
        self._env_ids = _numbers(options.pop("env_ids", 0))
        self._options = {**_own_options(arguments), **options}
        self._model: tuple[Any, SceneDescription | None] | None = None
        self._replayer: Replayer | None = None
        self._mirror: Mirror | None = None
        self._newest: States | None = None

    @classmethod
    def of(cls, arguments: Arguments) -> LocalView | None:
        """The view that `render=` asks for, None where it asks for none.

        Raises:
            ConfigError: the arguments contradict each other.
        """
        if arguments.render == "local":
            if arguments.render_mode not in (None, "rgb_array"):
                raise ConfigError(
                    f"render_mode={arguments.render_mode!r}: with render='local' it is 'rgb_array', or None"
                )
            return cls(arguments)
        if arguments.render is not None:
            raise ConfigError(f"render={arguments.render!r}: 'local' draws here, None leaves it to the task")
        for name in ("local_model", "local_mapping", "local_view"):
            if getattr(arguments, name) is not None and not arguments.local_pixels:
                raise ConfigError(f"{name}= is of a local view: ask for that with render='local', or local_pixels=")
        return None

    def begin(self, states: States, source: Source) -> None:
        """An episode begins with these: do they fit the model?

        Args:
            states: the environment's, or all those of a batch.
            source: the environment.

        Raises:
            InputError: the batch has no such environment as `env_ids` names.
            ReplayError: the model cannot be loaded, or names do not match; all are listed.
            Unsupported: no model was given, and the task does not say what it looks like.
            RemoteEnvError: what went wrong in the mirror before.
        """
        replayer = self._ready_replayer(source)
        replayer.check_names(states.layout)
        self._check_numbers(states)
        self._newest = states
        if self._mirror is not None:
            self._mirror.begin(self._chosen(states))

    def show(self, states: States | None) -> None:
        """Hand over what the last step brought: no more than a reference."""
        if states is None:
            return
        self._newest = states
        if self._mirror is not None:
            self._mirror.show(self._chosen(states))

    def render(self, state: SceneState, source: Source) -> Frame:
        """(height, width, 3) uint8 RGB of exactly this state."""
        replayer = self._ready_replayer(source)
        replayer.set_state(state)
        return replayer.render()

    def mirror(self, source: Source) -> Mirror:
        """What follows the newest state at its own frame rate; started when it is first asked for."""
        if self._mirror is None:
            from remote_env.replay.mirror import Mirror

            model, description = self._ready_model(source)
            looks = {"description": description, "rate_hz": self._rate_hz, **self._options}
            self._mirror = Mirror(model, mapping=self._mapping, **looks)
            if self._newest is not None:
                self._mirror.begin(self._chosen(self._newest))
        return self._mirror

    def make_replayer(self, source: Source, **looks: Any) -> Replayer:
        """Another one that draws the environment's states; its caller closes it.

        Args:
            source: the environment.
            looks: `width`, `height` and `quality`, as `Replayer` takes them.

        Raises:
            As `begin`.
        """
        from remote_env.replay.replayer import Replayer

        model, description = self._ready_model(source)
        return Replayer(model, mapping=self._mapping, description=description, **looks)

    def close(self) -> None:
        """Free what draws; calling it again does nothing."""
        mirror, self._mirror = self._mirror, None
        replayer, self._replayer = self._replayer, None
        self._model = self._newest = None
        try:
            if mirror is not None:
                mirror.close()
        finally:
            if replayer is not None:
                replayer.close()

    def _chosen(self, states: States) -> SceneState | list[SceneState]:
        if isinstance(states, SceneState):
            return states
        return [SceneState(states.layout, states.values[env_id]) for env_id in self._env_ids]

    def _check_numbers(self, states: States) -> None:
        count = 1 if isinstance(states, SceneState) else len(states.values)
        if not self._env_ids or not all(0 <= env_id < count for env_id in self._env_ids):
            raise InputError(
                f"local_view's env_ids={list(self._env_ids)}: at least one number of an environment, 0 to {count - 1}"
            )

    def _ready_replayer(self, source: Source) -> Replayer:
        if self._replayer is None:
            from remote_env.replay.replayer import Replayer

            model, description = self._ready_model(source)
            self._replayer = Replayer(model, mapping=self._mapping, description=description, **self._options)
        return self._replayer

    def _ready_model(self, source: Source) -> tuple[Any, SceneDescription | None]:
        """The model as `load_model` takes it, and the scene's description where that is needed."""
        if self._model is None:
            self._model = self._find_model(source)
        return self._model

    def _find_model(self, source: Source) -> tuple[Any, SceneDescription | None]:
        if self._given_model is not None and not self._needs_description():
            return self._given_model, None
        task_id = source.remote_spec.get("id")
        if self._given_model is None and task_id in ALOHA_TASKS:
            from remote_env.tasks.aloha_model import aloha_model_path

            return aloha_model_path(ALOHA_TASKS[task_id]), None
        try:
            description = source.get_scene_description()
        except Unsupported as error:
            raise Unsupported(
                f"the task {task_id!r} does not say what it looks like, so render='local' needs local_model=: an MJCF "
                f"file with the same names, or another with local_mapping= ({error})"
            ) from error
        return self._given_model or "capture", description

    def _needs_description(self) -> bool:
        from remote_env.replay.mapping import as_mapping

        return self._given_model == "capture" or as_mapping(self._mapping).add_missing


def _own_options(arguments: Arguments) -> dict[str, Any]:
    """How the task would render itself, where we know its arguments."""
    if arguments.env not in ALOHA_TASKS or arguments.local_model is not None:
        return {}
    kwargs = arguments.env_kwargs or {}
    options = {name: kwargs[name] for name in _OF_ALOHA if name in kwargs}
    cameras = kwargs.get("cameras", "top")
    return {"camera": cameras if isinstance(cameras, str) else cameras[0], **options}


def _numbers(env_ids: Any) -> tuple[int, ...]:
    return tuple(map(int, env_ids)) if isinstance(env_ids, Iterable) else (int(env_ids),)
